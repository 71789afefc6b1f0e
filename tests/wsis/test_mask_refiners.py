"""The comparison of mask refiners: its stages, its table, what it refuses."""

import json

import pytest

from wsis.benchmarks import mask_refiners as module
from wsis.benchmarks.mask_refiners import NAMES, POINTS, WAYS, make_plan, short, stages_of, table
from wsis.recipes.plan import MASKREFINENET, SAM


@pytest.mark.parametrize("students", [False, True])
def test_every_way_has_its_records_its_figures_and_its_student(tmp_path, students):
    plan, data = make_plan(tmp_path, "shapes", None, 2, "tiny", smoke=False)
    given = {file for stage in data for file in (*stage.makes, *stage.leaves)}
    stages = stages_of(plan, students=students)
    for stage in stages:
        assert set(stage.needs) <= given, stage.name
        given |= {*stage.makes, *stage.leaves}
    names = [stage.name for stage in stages]
    assert len(set(names)) == len(names)
    assert names[:6] == ["split", "teacher", "strong_1", "strong_2", "refiner", "weak"]
    for name in NAMES:
        assert f"quality_{short(name)}" in names
        assert (f"student_{short(name)}" in names) == students
    by_name = {stage.name: stage for stage in stages}
    both = by_name["weak_sam_maskrefinenet"].command.flags
    assert both["records"] == plan.output / "weak_sam.jsonl" and "weights" in both
    both = by_name["weak_maskrefinenet_sam"].command.flags
    assert both["records"] == plan.output / "weak_maskrefinenet.jsonl"
    assert (both["refiner"], both["segmenter"]) == (SAM, "tiny")
    assert by_name["points"].command.program == "point-masks"


def test_ways_are_all_orders_of_the_two():
    assert set(WAYS.values()) == {
        *((), (MASKREFINENET,), (SAM,), (MASKREFINENET, SAM), (SAM, MASKREFINENET))
    }


def test_the_table_has_the_seeds_that_are_there(tmp_path):
    found = {("shapes", name): [{"miou": 60.0}, {"miou": 64.0, "student": 20.0}] for name in NAMES}
    found["shapes", POINTS] = [{"miou": 50.0}]
    lines = table(found).splitlines()
    assert lines[0] == "| pseudo masks | shapes: mean IoU of pseudo masks | shapes: student AP |"
    assert lines[2] == "| teacher | 62.0 ± 2.8 (2) | 20.0 (1) |"
    assert lines[-1] == f"| {POINTS} | 50.0 (1) | not run |"


def test_figures_are_read_from_what_the_stages_wrote(tmp_path):
    plan, _ = make_plan(tmp_path, "shapes", None, 0, "tiny", smoke=True)
    plan.output.mkdir(parents=True)
    (plan.output / "quality_weak_sam.json").write_text(json.dumps({"points": {"miou": 66.6}}))
    assert module.figures(plan, "teacher, sam") == {"miou": 66.6}
    summary = plan.output / "student_weak_sam" / module.SUMMARY
    summary.parent.mkdir(parents=True)
    for ap, want in ((12.5, 12.5), (None, 0.0)):
        summary.write_text(json.dumps({"results": {"segm": {"AP": ap}}}))
        assert module.figures(plan, "teacher, sam") == {"miou": 66.6, "student": want}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--segmenter", "grabcut"], "takes boxes only"),
        (["--segmenter", "segment_anything:vit_b:none.pth"], "none.pth is missing"),
        (["--data", "nuclei", "--nuclei", "nowhere"], "needs --root"),
    ],
)
def test_what_is_missing_is_told_in_one_line(tmp_path, capsys, words, message):
    assert module.main(["--output", str(tmp_path), *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("mask_refiners: ") and message in error
