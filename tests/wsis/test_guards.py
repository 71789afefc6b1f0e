"""Guards of a training: what is not finite, what does not fit, and damaged checkpoints."""

import json
import logging

import pytest
import torch

import maskrefinenet.train
from tests.bad_input.world import World, copy_world, make_pristine, run
from wsis import guards
from wsis.training import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    return make_pristine(tmp_path_factory.mktemp("pristine") / "files")


@pytest.fixture
def world(pristine, tmp_path) -> World:
    return copy_world(pristine, tmp_path / "files")


def words(world: World, *more: str) -> list[str]:
    schedule = ("SOLVER.MAX_ITER", "4", "SOLVER.CHECKPOINT_PERIOD", "1")
    return [*world.words("train"), *schedule, *more]


def break_step(monkeypatch, number: int, what: str) -> None:
    """The loss or the gradients of one iteration are NaN, or its memory does not suffice."""
    inner = Trainer.run_step

    def run_step(trainer: Trainer) -> None:
        loop = trainer._trainer
        if trainer.iter == number and what == "memory":
            loop._next_batch = _out_of_memory
        elif trainer.iter == number:
            parameter = next(p for p in loop.model.parameters() if p.requires_grad)
            forward = type(loop.model).forward

            def broken(model, batch):
                losses = forward(model, batch)
                if what == "loss":
                    return losses | {"loss_ins": losses["loss_ins"] * float("nan")}
                parameter.register_hook(lambda grad: grad * float("inf"))
                return losses

            with monkeypatch.context() as patch:
                patch.setattr(type(loop.model), "forward", broken)
                inner(trainer)
            return
        inner(trainer)

    monkeypatch.setattr(Trainer, "run_step", run_step)


def _out_of_memory():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")


@pytest.mark.parametrize("what", ["loss", "gradients"])
def test_a_step_that_is_not_finite_stops_and_can_be_repeated(world, monkeypatch, capfd, what):
    break_step(monkeypatch, 2, what)
    assert run("train", words(world)) == 2
    message = capfd.readouterr().err
    assert f"the {what.removesuffix('s')}" in message and "iteration 2" in message
    assert ".png" in message and "SOLVER.SKIP_NONFINITE" in message
    folder = world.out / "train" / "nonfinite_0000002"
    batch = json.loads((folder / "batch.json").read_text())
    assert len(batch["images"]) == 2 and batch["images"][0] in message
    # The same command repeats the step from the folder: it stops again, at the same images.
    monkeypatch.undo()
    break_step(monkeypatch, 2, what)
    again = [w.replace(str(world.out / "train"), str(folder)) for w in words(world)]
    assert run("train", ["--resume", *again]) == 2
    repeated = capfd.readouterr().err
    assert all(name in repeated for name in batch["images"]) and "iteration 2" in repeated
    # Without the fault, it goes on to the weights that the run itself would have had.
    monkeypatch.undo()
    assert run("train", ["--resume", *again]) == 0
    other = [w.replace(str(world.out / "train"), str(world.out / "whole")) for w in words(world)]
    assert run("train", other) == 0
    assert_same(folder / "model_final.pth", world.out / "whole" / "model_final.pth")


def assert_same(first, second) -> None:
    states = [torch.load(path, weights_only=True)["model"] for path in (first, second)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_so_many_steps_may_be_skipped(world, monkeypatch, caplog):
    break_step(monkeypatch, 2, "loss")
    with caplog.at_level(logging.WARNING, logger=guards.__name__):
        assert run("train", words(world, "SOLVER.SKIP_NONFINITE", "1")) == 0
    assert "Step 2 is skipped, 1 of at most 1" in caplog.text and ".png" in caplog.text
    state = torch.load(world.out / "train" / "model_final.pth", weights_only=True)["model"]
    assert all(value.isfinite().all() for value in state.values())


def test_memory_that_does_not_suffice_ends_with_advice(world, monkeypatch, capfd):
    break_step(monkeypatch, 1, "memory")
    assert run("train", words(world)) == 2
    assert "lower SOLVER.IMS_PER_BATCH" in capfd.readouterr().err


@pytest.mark.parametrize("damage", ["cut off", "empty", "missing"])
def test_the_newest_good_checkpoint_is_used(world, capfd, damage):
    assert run("train", words(world)) == 0
    folder = world.out / "train"
    last = folder / "model_final.pth"
    whole = torch.load(last, weights_only=True)["model"]
    for path in (last, folder / "model_0000003.pth"):
        if damage == "missing":
            path.unlink(missing_ok=True)
        elif path.exists():
            path.write_bytes(path.read_bytes()[: 0 if damage == "empty" else -2000])
    assert run("train", ["--resume", *words(world)]) == 0
    state = torch.load(last, weights_only=True)["model"]
    assert all(torch.equal(state[key], whole[key]) for key in whole)


@pytest.mark.parametrize("what", ["loss", "gradients' norm"])
def test_a_refiners_step_that_is_not_finite_can_be_repeated(world, monkeypatch, capfd, what):
    schedule = ["--iterations", "4", "--checkpoint-period", "1"]
    plain = [*world.words("train-refiner"), *schedule]
    inner, calls = maskrefinenet.train.dice_loss, []

    def dice_loss(logits, target, *options):
        calls.append(0)
        if len(calls) == 3 and what == "loss":
            return inner(logits, target, *options) * float("nan")
        if len(calls) == 3:
            logits.register_hook(lambda gradient: gradient * float("inf"))
        return inner(logits, target, *options)

    monkeypatch.setattr(maskrefinenet.train, "dice_loss", dice_loss)
    assert run("train-refiner", plain) == 2
    message = capfd.readouterr().err
    assert f"the {what} is" in message and "iteration 2, images" in message and ".png" in message
    monkeypatch.undo()
    folder = world.out / "refiner" / "nonfinite_0000002"
    again = [w.replace(str(world.out / "refiner"), str(folder)) for w in plain]
    assert run("train-refiner", [*again, "--resume"]) == 0
    whole = [w.replace(str(world.out / "refiner"), str(world.out / "whole")) for w in plain]
    assert run("train-refiner", whole) == 0
    states = [
        torch.load(path / "last.pth", weights_only=True)["model_state"]
        for path in (folder, world.out / "whole")
    ]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[1])
