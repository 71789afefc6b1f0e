"""What a run computes depends on its seed, not on kills, workers or the number of processes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.detectron2.engine.run_toy import main

ROOT = Path(__file__).parents[3]
SCRIPT = Path(__file__).with_name("run_toy.py")
DROPOUT = ["MODEL.PIXEL_STD", "[1.5,1.0,1.0]"]  # the toy's dropout is the first number minus 1


def toy_args(folder, output, *flags, opts=()):
    return ["--folder", str(folder), "--num-gpus", "0", *flags, "OUTPUT_DIR", str(output), *opts]


def start(command, **kwargs):
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, *map(str, command)], env=environment, capture_output=True, text=True,
        timeout=600, **kwargs,
    )  # fmt: skip


def losses_of(output):
    return json.loads((output / "losses.json").read_text())


def weights_of(output):
    return torch.load(output / "weights.pth", weights_only=True)


@pytest.mark.slow
def test_killed_and_resumed_run_ends_like_an_uninterrupted_one(toy_folder, tmp_path):
    """Killed with batches prefetched by a worker, resumed without one.

    With all that could differ: random crops and flips, dropout, images waiting for their group.
    """
    opts = [*DROPOUT, "DATALOADER.ASPECT_RATIO_GROUPING", "True"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    main(toy_args(toy_folder, whole, opts=opts))
    killed_opts = [*opts, "DATALOADER.NUM_WORKERS", "1"]
    result = start([SCRIPT, *toy_args(toy_folder, killed, "--kill-at", "9", opts=killed_opts)])
    assert result.returncode == -signal.SIGKILL, result.stderr
    assert sorted(path.name for path in killed.glob("*.pth")) == [
        "model_0000003.pth",
        "model_0000007.pth",
    ]
    main(toy_args(toy_folder, killed, "--resume", opts=opts))
    assert losses_of(killed) == {i: v for i, v in losses_of(whole).items() if int(i) >= 8}
    for name, want in weights_of(whole).items():
        torch.testing.assert_close(weights_of(killed)[name], want, rtol=0, atol=0)


@pytest.mark.slow
def test_two_processes_under_torchrun_give_the_losses_of_one(toy_folder, tmp_path):
    opts = ["DATALOADER.ASPECT_RATIO_GROUPING", "False", "SOLVER.MAX_ITER", "5"]
    one, two = tmp_path / "one", tmp_path / "two"
    main(toy_args(toy_folder, one, opts=opts))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    result = start([*torchrun, SCRIPT, *toy_args(toy_folder, two, opts=opts)])
    assert result.returncode == 0, result.stderr
    want, got = losses_of(one), losses_of(two)
    assert len(got) == 5
    assert got == pytest.approx(want, abs=1e-6)
    for name, weight in weights_of(one).items():
        torch.testing.assert_close(weights_of(two)[name], weight, rtol=1e-4, atol=1e-6)


def test_another_seed_gives_another_run(toy_folder, tmp_path):
    opts = ["SOLVER.MAX_ITER", "2"]
    main(toy_args(toy_folder, tmp_path / "a", opts=opts))
    main(toy_args(toy_folder, tmp_path / "b", opts=[*opts, "SEED", "4"]))
    main(toy_args(toy_folder, tmp_path / "c", opts=[*opts, "DATALOADER.NUM_WORKERS", "2"]))
    a, b, c = (losses_of(tmp_path / name) for name in "abc")
    assert a == c
    assert all(a[i] != b[i] for i in a)


def test_resuming_without_a_seed_says_that_the_order_is_new(toy_folder, tmp_path):
    opts = ["SEED", "-1", "SOLVER.MAX_ITER", "4"]
    main(toy_args(toy_folder, tmp_path, opts=opts))
    main(toy_args(toy_folder, tmp_path, "--resume", opts=[*opts[:3], "6"]))
    assert "order of the data starts anew" in (tmp_path / "log.txt").read_text()
    assert sorted(losses_of(tmp_path)) == ["4", "5"]
