"""A fixed seed gives the same weights bit for bit, whatever the number of data workers."""

import pytest
import torch

from tests.bad_input.world import World, copy_world, make_pristine, run

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]


@pytest.fixture
def world(tmp_path) -> World:
    make_pristine(tmp_path / "pristine")
    return copy_world(tmp_path / "pristine", tmp_path / "files")


def weights(world: World, program: str, output: str, *more: str) -> dict[str, torch.Tensor]:
    """The weights that a training in a folder of its own ends with."""
    own = {"train": "train", "train-refiner": "refiner"}[program]
    words = [w.replace(str(world.out / own), str(world.out / output)) for w in world.words(program)]
    assert run(program, [*words, *more]) == 0
    name = {"train": "model_final.pth", "train-refiner": "last.pth"}[program]
    content = torch.load(world.out / output / name, weights_only=True)
    return content.get("model") or content["model_state"]


SETTINGS = {
    "train": (("SOLVER.MAX_ITER", "3"), "DATALOADER.NUM_WORKERS", "SEED"),
    "train-refiner": (("--iterations", "3"), "--workers", "--seed"),
}


@pytest.mark.parametrize("program", SETTINGS)
def test_weights_follow_from_the_seed(world: World, program: str):
    schedule, workers, seed = SETTINGS[program]
    once = weights(world, program, "once", *schedule, workers, "0")
    again = weights(world, program, "again", *schedule, workers, "2")
    other = weights(world, program, "other", *schedule, workers, "0", seed, "2")
    assert once.keys() == again.keys()
    assert all(torch.equal(once[key], again[key]) for key in once)
    assert not all(torch.equal(once[key], other[key]) for key in once)
