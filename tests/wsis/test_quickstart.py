"""The quick start: which stages it runs, and what it refuses."""

from dataclasses import replace
from pathlib import Path

import pytest

from wsis.cli.main import program
from wsis.quickstart_report import table_rows
from wsis.recipes import quickstart
from wsis.recipes.quickstart import Settings, make_plan
from wsis.runner import PipelineError


@pytest.fixture
def settings(tmp_path) -> Settings:
    return Settings(output=tmp_path / "output")


@pytest.mark.parametrize("baseline", [False, True])
@pytest.mark.parametrize("full", [False, True])
def test_every_row_of_the_table_has_its_stage(settings, baseline, full):
    plan = make_plan(replace(settings, subset="20p"), seed=0)
    names = [s.name for s in quickstart.seed_stages(plan, baseline=baseline, full=full)]
    rows = table_rows(20, baseline=baseline, full=full)
    assert {row.name for row in rows} <= set(names)
    assert len(rows) == 4 + baseline + full
    assert ("confident" in names) == baseline
    assert rows[0].what.endswith("masks of 20%, nothing else")


def test_every_stage_reads_what_earlier_ones_make(settings):
    plan = make_plan(settings, seed=0)
    given = set()
    stages = quickstart.data_stages(plan, settings)
    for stage in [*stages, *quickstart.seed_stages(plan, baseline=True, full=True)]:
        assert set(stage.needs) <= given, stage.name
        given |= {*stage.makes, *stage.leaves}


def test_another_student_keeps_the_teacher(settings):
    plan = make_plan(replace(settings, student="mask_rcnn"), seed=0)
    assert plan.student_config == "configs/Quickstart/mask_rcnn_shapes.yaml"
    assert plan.teacher_config == "configs/Quickstart/shapes_teacher.yaml"


def test_seeds_reach_split_trainings_and_refiner(settings):
    stages = {s.name: s for s in quickstart.build_stages(make_plan(settings, seed=3))}
    assert stages["split"].command.flags["seed"] == 3
    assert stages["refiner"].command.flags["seed"] == 3
    for name in ("teacher", "student"):
        assert stages[name].command.config["SEED"] == "3"


@pytest.mark.parametrize("words", [["--data", "nuclei"], ["--data", "coco", "--root", "nowhere"]])
def test_own_data_need_their_folder(words, capsys):
    assert program("quickstart", words) == 2
    assert "--root" in capsys.readouterr().err


def test_own_data_are_not_made(settings, tmp_path):
    own = replace(settings, data="nuclei", root=tmp_path)
    with pytest.raises(PipelineError, match="a folder that holds annotations/"):
        make_plan(own, seed=0)
    (tmp_path / "annotations").mkdir()
    plan = make_plan(own, seed=0)
    assert plan.source.image_root == tmp_path / "train"
    assert quickstart.data_stages(plan, own) == []


def test_the_short_form_is_one_training_on_all_masks(settings):
    plan = make_plan(replace(settings, supervised=True), seed=0)
    stage = quickstart.full_stage(plan)
    assert plan.source.train_json in stage.needs
    (made_first,) = quickstart.data_stages(plan, settings)
    assert set(stage.needs) <= {*made_first.makes, *made_first.leaves}
    full = quickstart.seed_stages(plan, baseline=False, full=True)[-1]
    assert full == stage  # so that both name the same figure


def test_each_form_has_a_folder_of_its_own():
    names = [
        quickstart.default_output(smoke=smoke, supervised=supervised, student=student)
        for smoke in (False, True)
        for supervised in (False, True)
        for student in ("solov2", "mask_rcnn")
    ]
    assert names[0] == Path("output/quickstart") and len(set(names)) == 8


def test_the_short_form_and_the_upper_bound_exclude_each_other(capsys):
    with pytest.raises(SystemExit):
        program("quickstart", ["--supervised", "--full"])
    assert "not allowed with" in capsys.readouterr().err
