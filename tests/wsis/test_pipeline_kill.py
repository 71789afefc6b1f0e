"""A small run of coco_10p.sh, killed once in every stage: it finishes all the same."""

import json
import re
import subprocess
from functools import partial
from pathlib import Path

import pytest

from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from tests.documentation import small_pipeline
from tests.programs import make_shapes
from tests.wsis import killing
from tests.wsis.killing import kill_in, state
from wsis.runner.markers import FINISHED

STAGES = ("split", "teacher", "strong_1", "strong_2", "refiner", "weak", "refine", "merge")
TRAINING = ("teacher", "student")
EVERY_ITERATION = ("SOLVER.CHECKPOINT_PERIOD", "1")


def make_coco(datasets: Path) -> None:
    """A few scenes laid out as COCO 2017, their shapes called by the names of COCO classes."""
    coco = datasets / "coco"
    assert make_shapes([str(coco), "--train", "20", "--val", "2", "--size", "64"]) == 0
    for split in ("train", "val"):
        (coco / split).rename(coco / f"{split}2017")
        path = coco / "annotations" / f"instances_{split}.json"
        content = json.loads(path.read_text()) | {"categories": COCO_CATEGORIES}
        (coco / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))


def start(datasets: Path, output: Path, *more: str) -> subprocess.Popen:
    return killing.start([*small_pipeline(), *EVERY_ITERATION, *more], datasets, output)


def finish(datasets: Path, output: Path, *more: str) -> str:
    return killing.finish(start(datasets, output, *more))


@pytest.mark.slow
def test_killed_in_every_stage_the_run_finishes(tmp_path):
    datasets, output = tmp_path / "datasets", tmp_path / "output"
    make_coco(datasets)
    for stage in (*STAGES, "student"):
        work = "Saving checkpoint" if stage in TRAINING else f"] {stage}: "
        kill_in(stage, partial(start, datasets, output), output, work)
    printed = finish(datasets, output)
    assert all(f"] {stage}: finished, skipped" in printed for stage in STAGES)
    heads = [line for line in printed.splitlines() if re.match(r"\[\d/9\] ", line)]
    assert len(heads) == 9
    assert not any("] student: finished" in head or "given" in head for head in heads)
    assert {state(output, stage) for stage in (*STAGES, "student")} == {FINISHED}
    student = output / "student" / "model_final.pth"
    before = student.stat().st_mtime_ns
    assert "Nothing to do" in finish(datasets, output)
    assert student.stat().st_mtime_ns == before
    redo_with_other_labels_and_network(datasets, output)


def redo_with_other_labels_and_network(datasets: Path, output: Path) -> None:
    """Students of unrefined labels, from the finished stages; the older ones are kept."""
    changes = ("--without-refiner", "--from")
    printed = finish(datasets, output, *changes, "merge")
    assert "] weak: finished, skipped" in printed and "] student: finished" not in printed
    finish(datasets, output, *changes, "student", "--student", "mask_rcnn")
    summaries = list(output.glob("student*/inference/summary.json"))
    assert len(summaries) == 3
    assert "GeneralizedRCNN" in (output / "student" / "config.yaml").read_text()
