"""PointWSSIS with a segmenter: stages of each choice, what is refused, small runs."""

import json
from functools import partial
from pathlib import Path

import pytest

from tests.documentation import SMALL_NETWORK, SMALL_REFINER
from tests.programs import make_shapes
from tests.wsis.plans import stage_named
from weaklabels.records import read_records
from wsis.cli.main import program
from wsis.recipes.pointwssis import build_stages
from wsis.runner import PipelineError

STRONG = ["strong_1", "strong_2", "refiner"]
CHOICES = {  # words of the command: names of the stages
    ("--refiner", "sam"): ["split", "teacher", "weak", "refine", "merge", "student"],
    ("--refiner", "maskrefinenet,sam"): [
        *("split", "teacher", *STRONG, "weak", "refine", "refine_2", "merge", "student")
    ],
    ("--refiner", "sam,maskrefinenet --encoder resnet18"): [
        *("split", "teacher", *STRONG, "weak", "refine", "refine_2", "merge", "student")
    ],
    ("--teacher", "sam"): ["split", "weak", "merge", "student"],
    ("--teacher", "sam", "--refiner", "sam"): ["split", "weak", "refine", "merge", "student"],
    ("--teacher", "sam", "--refiner", "maskrefinenet"): [
        *("split", "strong_1", "refiner", "weak", "refine", "merge", "student")
    ],
}


@pytest.mark.parametrize("words", CHOICES)
def test_stages_of_each_choice_read_what_earlier_ones_make(make_plan, words):
    plan = make_plan("10p", *words)
    stages = build_stages(plan)
    assert [stage.name for stage in stages] == CHOICES[words]
    given = {plan.source.train_json, plan.source.image_root, plan.source.val_json}
    for stage in stages:
        assert set(stage.needs) <= given, stage.name
        given |= {*stage.makes, *stage.leaves}
    used = [stage.command.flags.get("segmenter") for stage in stages]
    assert set(used) == {None, "tiny"}


def test_refiners_work_in_their_order(make_plan):
    for text in ("maskrefinenet,sam", "sam,maskrefinenet"):
        plan = make_plan("10p", "--refiner", text, "--segmenter", "grabcut")
        first, second = (stage_named(plan, name) for name in ("refine", "refine_2"))
        assert first.command.flags["records"] == plan.output / "weak.jsonl"
        assert second.command.flags["records"] == first.makes[0]
        assert stage_named(plan, "merge").command.flags["records"] == second.makes[0]
        redrawn = [stage.command.flags.get("refiner") for stage in (first, second)]
        assert redrawn == [{"sam": "sam"}.get(name) for name in text.split(",")]


def test_the_methods_own_labels_keep_their_name(make_plan):
    """Two runs with one dataset: with a segmenter the merged labels lie below OUTPUT_DIR."""
    plan = make_plan("10p")
    assert plan.merged.name == "instances_train2017_10p_sw_refined.json"
    assert plan.merged_name == "coco_2017_train_10p_sw_refined"
    plan = make_plan("10p", "--refiner", "sam")
    assert plan.merged == plan.output / "merged.json"
    assert f"={plan.merged}:" in stage_named(plan, "student").command.config["DATASETS.TRAIN"]


@pytest.mark.parametrize("words", CHOICES)
def test_a_dry_run_prints_the_commands_and_runs_nothing(make_plan, tmp_path, capsys, words):
    make_plan("10p")  # sets the environment
    assert program("run", ["pointwssis", "10p", *words, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "--segmenter tiny" in printed
    assert ("point-masks" in printed) == ("--teacher" in words)
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--teacher", "sam", "--segmenter", "grabcut"], "takes boxes only, and --teacher sam"),
        (["--refiner", "sam", "--segmenter", "sam2"], "segmenter 'sam2'; expected one of tiny"),
        (["--segmenter", "tiny"], "is for --teacher sam or --refiner sam: leave it out"),
        (["--refiner", "sam", "--without-refiner"], "give one of them"),
        (["--refiner", "sam,sam"], "expected maskrefinenet or sam, or both"),
        (["--refiner", "mrn"], "expected maskrefinenet or sam, or both"),
        (["--refiner", "sam --lr 1"], "--lr 1 are options of MaskRefineNet's training"),
        (["--teacher", "sam", "--teacher-config", "a.yaml"], "is of --teacher solov2"),
        (["--teacher", "sam", "--start-from", "released"], "say released:split"),
        (
            ["--refiner", "maskrefinenet,sam", "--start-from", "released:pseudo-labels"],
            "were made without a segmenter",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make_plan, capsys, words, message):
    make_plan("10p")
    assert program("run", ["pointwssis", "10p", *words, "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1


def test_a_missing_file_of_the_segmenter_is_said_before_anything_runs(make_plan):
    name = "segment_anything:vit_b:weights/sam_vit_b_01ec64.pth"
    plan = make_plan("10p", "--refiner", "sam", "--segmenter", name)
    stages = build_stages(plan)
    for stage in stages[:-1]:
        with pytest.raises(PipelineError, match=r"sam_vit_b_01ec64.pth is missing: .*375 MB.*http"):
            stage.before[0]()
    assert not stages[-1].before  # the student does not need it
    for name in ("tiny", "grabcut", "transformers:facebook/sam-vit-huge"):
        (look, *_) = stage_named(
            make_plan("10p", "--refiner", "sam", "--segmenter", name), "teacher"
        ).before
        look()


@pytest.fixture
def start(tmp_path, monkeypatch):
    """`wsis run pointwssis 30p` on ten scenes with a small network; the exit code."""
    folder = tmp_path / "shapes"
    assert make_shapes([str(folder), "--train", "10", "--val", "2", "--size", "64"]) == 0
    monkeypatch.setenv("OUTPUT_DIR", str(tmp_path / "output"))
    monkeypatch.setenv("NUM_GPUS", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    data = ["--dataset", "own", "--train-json", folder / "annotations/instances_train.json"]
    data += ["--image-root", folder / "train", "--val-root", folder / "val"]
    data += ["--val-json", folder / "annotations/instances_val.json"]
    small = [word for pair in SMALL_NETWORK.items() for word in pair]
    return partial(run, [*map(str, data)], small)


def run(data: list[str], small: list[str], *words: str) -> int:
    return program("run", ["pointwssis", "30p", *data, *words, *small])


def check_labels(output: Path, records: str) -> None:
    """The student was trained on the points' own classes and the masks of the last records."""
    merged = json.loads((output / "merged.json").read_text())
    rows = [row for _, record in read_records(output / records) for row in record["instances"]]
    pseudo = [a for a in merged["annotations"] if "score" in a]
    assert len(pseudo) == len(rows) > 5
    assert [a["segmentation"] for a in pseudo] == [row["segmentation"] for row in rows]
    assert (output / "student" / "inference" / "summary.json").is_file()


@pytest.mark.slow
def test_without_a_teacher_the_run_ends_with_a_student(start, tmp_path):
    refiner = f"maskrefinenet {SMALL_REFINER}"
    assert start("--teacher", "sam", "--refiner", refiner) == 0
    check_labels(tmp_path / "output", "weak_refined.jsonl")
    assert not (tmp_path / "output" / "teacher").exists()
    assert start("--teacher", "sam", "--refiner", refiner) == 0  # nothing to do


@pytest.mark.slow
def test_both_refiners_follow_the_teacher(start, tmp_path):
    assert start("--refiner", f"maskrefinenet,sam {SMALL_REFINER}") == 0
    check_labels(tmp_path / "output", "weak_refined_2.jsonl")
