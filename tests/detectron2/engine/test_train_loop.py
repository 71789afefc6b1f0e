import json
import logging

import pytest
import torch
from fvcore.common.checkpoint import Checkpointer
from torch import nn

from detectron2.engine import (
    HookBase,
    SimpleTrainer,
    TrainerBase,
    create_ddp_model,
    hooks,
    launch,
)
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, EventStorage, JSONWriter
from tests.detectron2.engine.conftest import ToyModel


def make_trainer(model, batches, lr=0.1):
    return SimpleTrainer(model, batches(), torch.optim.SGD(model.parameters(), lr))


class Recorder(HookBase):
    def __init__(self, name, calls):
        self.name, self.calls = name, calls

    def _record(self, method):
        self.calls.append((self.name, method, self.trainer.iter))

    def before_train(self):
        self._record("before_train")

    def after_train(self):
        self._record("after_train")

    def before_step(self):
        self._record("before_step")

    def after_step(self):
        self._record("after_step")


def test_training_equals_a_plain_loop(toy_model, batches):
    twin = type(toy_model)()
    twin.load_state_dict(toy_model.state_dict())
    optimizer = torch.optim.SGD(twin.parameters(), 0.1)
    for _, batch in zip(range(5), batches(), strict=False):
        optimizer.zero_grad()
        sum(twin(batch).values()).backward()
        optimizer.step()
    make_trainer(toy_model, batches).train(0, 5)
    for got, want in zip(toy_model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_hooks_run_in_order_around_each_step(toy_model, batches):
    calls = []
    trainer = make_trainer(toy_model, batches)
    trainer.register_hooks([Recorder("a", calls), None, Recorder("b", calls)])
    trainer.train(3, 5)
    methods = [("before_train", 3)]
    methods += [(method, i) for i in (3, 4) for method in ("before_step", "after_step")]
    methods += [("after_train", 5)]
    assert calls == [(name, method, i) for method, i in methods for name in "ab"]
    assert trainer.iter == trainer.max_iter == 5


def test_after_train_runs_when_a_step_fails(toy_model, batches, caplog):
    calls = []
    trainer = make_trainer(toy_model, batches)
    trainer.register_hooks([Recorder("a", calls)])
    trainer.register_hooks([hooks.EvalHook(0, lambda: calls.append("evaluated"))])
    trainer.data_loader = iter([torch.rand(2, 3)])
    with pytest.raises(StopIteration):
        trainer.train(0, 5)
    assert calls[-1] == ("a", "after_train", 1)
    assert "iteration 1" in caplog.text


def test_register_hooks_refuses_other_things(toy_model, batches):
    with pytest.raises(TypeError, match="HookBase"):
        make_trainer(toy_model, batches).register_hooks([print])


def test_a_trainer_without_run_step_says_so():
    with pytest.raises(TypeError, match="run_step"):
        TrainerBase().train(0, 1)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_loss_names_iteration_and_losses(toy_model, value):
    data = iter([torch.rand(2, 3), torch.full((2, 3), value)])
    trainer = SimpleTrainer(toy_model, data, torch.optim.SGD(toy_model.parameters(), 0.1))
    with pytest.raises(FloatingPointError, match=r"iteration=8.*loss_fit.*loss_size"):
        trainer.train(7, 10)
    assert all(p.isfinite().all() for p in toy_model.parameters())  # raised before the step


def test_model_in_eval_mode_is_refused(toy_model, batches):
    trainer = make_trainer(toy_model, batches)
    toy_model.eval()
    with pytest.raises(RuntimeError, match="eval mode"):
        trainer.train(0, 1)


def test_reset_data_loader(toy_model, batches):
    trainer = make_trainer(toy_model, batches)
    trainer.train(0, 2)
    trainer.reset_data_loader(lambda: batches(1))
    trainer.train(2, 4)
    assert trainer.storage.latest()["total_loss"][1] == 3


def test_write_metrics_of_one_and_of_several_losses():
    with EventStorage() as storage:
        SimpleTrainer.write_metrics({"total_loss": torch.tensor(2.0)}, 0.5, prefix="x_")
        assert set(storage.latest()) == {"data_time", "x_total_loss"}
        SimpleTrainer.write_metrics({"a": torch.tensor([1.0]), "b": torch.tensor(3.0)}, 0.5)
        latest = {name: value for name, (value, _) in storage.latest().items()}
    assert (latest["total_loss"], latest["a"], latest["b"]) == (4.0, 1.0, 3.0)
    assert latest["data_time"] == 0.5


def test_a_scalar_loss_is_enough(batches):
    class Scalar(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x).square().mean()

    trainer = make_trainer(Scalar(3, 1), batches)
    trainer.train(0, 2)
    assert trainer.storage.latest()["total_loss"][1] == 1


def test_writers_get_training_and_final_evaluation(toy_model, batches, tmp_path, caplog):
    path = tmp_path / "metrics.json"
    printer = CommonMetricPrinter(50)
    caplog.set_level(logging.INFO, logger=printer.logger.name)
    trainer = make_trainer(toy_model, batches)
    evaluation = hooks.EvalHook(0, lambda: {"metric": 100})
    trainer.register_hooks([evaluation, hooks.PeriodicWriter([printer, JSONWriter(str(path))])])
    trainer.train(0, 50)
    written = {line["iteration"]: line for line in map(json.loads, path.open())}
    assert list(written) == [19, 39, 49, 50]
    assert written[50]["metric"] == 100 and "metric" not in written[49]
    progress = [text for text in caplog.messages if "total_loss: " in text]
    assert [text.partition("iter: ")[2].split()[0] for text in progress] == ["19", "39", "49"]


def recorded(trainer, max_iter):
    """What a training records: for each scalar (but times) its values and their iterations."""
    trainer.train(0, max_iter)
    histories = trainer.storage.histories()
    return {name: history.values() for name, history in histories.items() if name != "data_time"}


def losses_with(options, batches, max_iter=7):
    torch.manual_seed(0)
    model = ToyModel()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    return recorded(SimpleTrainer(model, batches(), optimizer, **options), max_iter)


def test_metrics_of_the_background_thread_are_the_same(batches):
    assert losses_with({"async_write_metrics": True}, batches) == losses_with({}, batches)


def test_gradients_may_be_cleared_before_the_forward_pass(batches):
    assert losses_with({"zero_grad_before_forward": True}, batches) == losses_with({}, batches)


@pytest.mark.parametrize("background", [False, True])
def test_metrics_are_gathered_each_period(batches, monkeypatch, background):
    calls = []
    gather = comm.gather
    monkeypatch.setattr(comm, "gather", lambda *a, **k: (calls.append(1), gather(*a, **k))[1])
    options = {"gather_metric_period": 3, "async_write_metrics": background}
    got = losses_with(options, batches)
    assert len(calls) == 2
    every = losses_with({}, batches)
    assert got == {name: [values[2], values[5]] for name, values in every.items()}


def test_background_metrics_are_joined_when_a_step_fails(toy_model, batches):
    data = iter([torch.rand(2, 3), torch.rand(2, 3)])
    optimizer = torch.optim.SGD(toy_model.parameters(), 0.1)
    trainer = SimpleTrainer(toy_model, data, optimizer, async_write_metrics=True)
    with pytest.raises(StopIteration):
        trainer.train(0, 5)
    assert [i for _, i in trainer.storage.history("total_loss").values()] == [0, 1]


def test_background_metrics_raise_before_training_counts_as_done(toy_model):
    evaluated = []
    data = iter([torch.rand(2, 3), torch.full((2, 3), float("nan"))])
    optimizer = torch.optim.SGD(toy_model.parameters(), 0.1)
    trainer = SimpleTrainer(toy_model, data, optimizer, async_write_metrics=True)
    trainer.register_hooks([hooks.EvalHook(0, lambda: evaluated.append(1))])
    with pytest.raises(FloatingPointError, match="iteration=8"):
        trainer.train(7, 9)
    assert not evaluated


class Product(nn.Linear):
    """The loss is the input times a weight that starts at 1."""

    def __init__(self):
        super().__init__(1, 1, bias=False)
        nn.init.ones_(self.weight)

    def forward(self, x):
        return super().forward(x).sum()


def train_on_ranks(path):
    """Run in each process, on data that is 1 on rank 0 and 2 on rank 1."""
    net = create_ddp_model(Product())
    data = iter([torch.full((1, 1), float(comm.get_rank() + 1))] * 4)
    optimizer = torch.optim.SGD(net.parameters(), 0.0)
    trainer = SimpleTrainer(net, data, optimizer, async_write_metrics=True)
    trainer.train(0, 4)
    if comm.is_main_process():
        path.write_text(str(trainer.storage.history("total_loss").values()))


@pytest.mark.slow
def test_background_metrics_are_means_over_ranks(tmp_path):
    launch(train_on_ranks, 0, args=(tmp_path / "out",), num_processes=2)
    assert (tmp_path / "out").read_text() == str([(1.5, i) for i in range(4)])


def test_checkpoint_resume_restores_iteration_optimizer_and_schedule(toy_model, batches, tmp_path):
    def build(lr):
        optimizer = torch.optim.SGD(toy_model.parameters(), lr, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
        trainer = SimpleTrainer(toy_model, batches(), optimizer)
        checkpointer = Checkpointer(toy_model, str(tmp_path), trainer=trainer)
        trainer.register_hooks(
            [
                hooks.LRScheduler(scheduler=scheduler),
                hooks.PeriodicCheckpointer(checkpointer, 10),
            ]
        )
        return trainer, optimizer, scheduler, checkpointer

    trainer, first_optimizer, *_ = build(0.1)
    trainer.train(0, 12)
    trainer, optimizer, scheduler, checkpointer = build(999)
    checkpointer.resume_or_load("unused.pth")
    assert trainer.iter == 11
    assert scheduler.last_epoch == 12
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-5)
    for got, want in zip(
        optimizer.state_dict()["state"].values(),
        first_optimizer.state_dict()["state"].values(),
        strict=True,
    ):
        torch.testing.assert_close(got["momentum_buffer"], want["momentum_buffer"])


def test_states_of_two_hooks_of_one_class_are_kept_apart(toy_model, batches, caplog):
    class Counter(HookBase):
        def __init__(self, count):
            self.count = count

        def state_dict(self):
            return {"count": self.count}

        def load_state_dict(self, state_dict):
            self.count = state_dict["count"]

    trainer = make_trainer(toy_model, batches)
    trainer.register_hooks([Counter(1), Counter(2)])
    state = trainer.state_dict()
    other = make_trainer(toy_model, batches)
    counters = [Counter(0), Counter(0)]
    other.register_hooks(counters)
    other.load_state_dict(state)
    assert [counter.count for counter in counters] == [1, 2]
    make_trainer(toy_model, batches).load_state_dict(state)
    assert "Counter" in caplog.text


def test_mixed_precision_needs_cuda(toy_model, batches):
    from detectron2.engine import AMPTrainer

    with pytest.raises(ValueError, match="SOLVER.AMP.ENABLED"):
        AMPTrainer(toy_model, batches(), torch.optim.SGD(toy_model.parameters(), 0.1))


@pytest.mark.gpu
def test_mixed_precision_trains_and_keeps_its_scale(toy_model, batches):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    from detectron2.engine import AMPTrainer

    toy_model.cuda()
    data = (batch.cuda() for batch in batches())
    trainer = AMPTrainer(toy_model, data, torch.optim.SGD(toy_model.parameters(), 0.1))
    trainer.train(0, 3)
    state = trainer.state_dict()
    assert state["grad_scaler"]["scale"] > 0
    trainer.load_state_dict(state)
