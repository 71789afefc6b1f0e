"""The whole chain on a few small scenes, killed once in every stage: it finishes all the same."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tools.make_shapes import main as make_shapes
from tools.pipeline import ROOT

STAGES = ("split", "teacher", "strong_1", "strong_2", "refiner", "weak", "refine", "merge")
TINY = (
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", "32", "MODEL.FPN.OUT_CHANNELS", "32"),
    *("MODEL.SOLOV2.INSTANCE_IN_CHANNELS", "32", "MODEL.SOLOV2.INSTANCE_CHANNELS", "32"),
    *("MODEL.SOLOV2.MASK_IN_CHANNELS", "32", "MODEL.SOLOV2.MASK_CHANNELS", "32"),
    *("SOLVER.MAX_ITER", "4", "SOLVER.CHECKPOINT_PERIOD", "1", "SOLVER.IMS_PER_BATCH", "2"),
    *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64"),
)
REFINER = "--encoder resnet18 --weights none --size 32 --iterations 3 --batch-size 2 --workers 0"


def command(data: Path) -> list[str]:
    words = [sys.executable, str(ROOT / "tools/pipeline.py"), "50p", "--dataset", "own"]
    words += ["--train-json", str(data / "annotations/instances_train.json")]
    words += ["--image-root", str(data / "train")]
    words += ["--val-json", str(data / "annotations/instances_val.json")]
    words += ["--val-root", str(data / "val")]
    words += ["--teacher-config", "configs/Quickstart/shapes_teacher.yaml"]
    words += ["--student-config", "configs/Quickstart/shapes_student.yaml"]
    return [*words, "--refiner", REFINER, *TINY]


def start(data: Path, output: Path) -> subprocess.Popen:
    environment = os.environ | {"NUM_GPUS": "0", "OUTPUT_DIR": str(output), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command(data),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def kill_in(stage: str, data: Path, output: Path, words_of_work: str) -> None:
    """Start the chain; kill all of it when `stage` has printed `words_of_work`, or has begun."""
    process = start(data, output)
    reached, lines = False, []
    for line in process.stdout:
        lines.append(line)
        reached = reached or f"] {stage}: " in line
        if reached and words_of_work in line:
            break
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert reached, "".join(lines[-30:])
    assert not (output / "stages" / f"{stage}.json").exists()


@pytest.mark.slow
def test_killed_in_every_stage_the_chain_finishes(tmp_path):
    data, output = tmp_path / "shapes", tmp_path / "output"
    assert make_shapes([str(data), "--train", "12", "--val", "2", "--size", "64"]) == 0
    # A training is killed when it has saved something, the others as soon as they have begun.
    for stage in STAGES:
        work = "Saving checkpoint" if stage == "teacher" else f"] {stage}: "
        kill_in(stage, data, output, work)
    kill_in("student", data, output, "Saving checkpoint")
    finished = start(data, output)
    printed, _ = finished.communicate()
    assert finished.returncode == 0, printed[-3000:]
    assert all(f"] {stage}: finished, skipped" in printed for stage in STAGES)
    student = output / "student" / "model_final.pth"
    before = student.stat().st_mtime_ns
    again = start(data, output)
    printed, _ = again.communicate()
    assert again.returncode == 0
    assert "Nothing to do" in printed
    assert student.stat().st_mtime_ns == before
