"""The quick start: which stages it runs, and what it refuses."""

from pathlib import Path

import pytest

from wsis.quickstart_report import table_rows
from wsis.recipes import quickstart
from wsis.recipes.pointwssis import teacher_solver


def make_plan(tmp_path: Path, *words: str):
    args = quickstart.build_parser().parse_args(["--output", str(tmp_path / "output"), *words])
    folder = quickstart.data_folder(args)
    return args, quickstart.make_plan(args, quickstart.NORMAL, folder, seed=0), folder


@pytest.mark.parametrize("baseline", [False, True])
@pytest.mark.parametrize("full", [False, True])
def test_every_row_of_the_table_has_its_stage(tmp_path, baseline, full):
    _, plan, _ = make_plan(tmp_path, "--subset", "20p")
    names = [s.name for s in quickstart.seed_stages(plan, baseline=baseline, full=full)]
    rows = table_rows(20, baseline=baseline, full=full)
    assert {row.name for row in rows} <= set(names)
    assert len(rows) == 4 + baseline + full
    assert ("confident" in names) == baseline
    assert rows[0].what.endswith("masks of 20%, nothing else")


def test_every_stage_reads_what_earlier_ones_make(tmp_path):
    args, plan, folder = make_plan(tmp_path)
    given = {plan.source.image_root}
    given |= {plan.output / f"teacher/model_{i:07d}.pth" for i in teacher_solver(plan)[1]}
    stages = quickstart.data_stage(plan, args, quickstart.NORMAL, folder)
    for stage in [*stages, *quickstart.seed_stages(plan, baseline=True, full=True)]:
        assert set(stage.needs) <= given, stage.name
        given |= set(stage.makes)


def test_another_student_keeps_the_teacher(tmp_path):
    _, plan, _ = make_plan(tmp_path, "--student", "mask_rcnn")
    assert plan.student_config == "configs/Quickstart/mask_rcnn_shapes.yaml"
    assert plan.teacher_config == "configs/Quickstart/shapes_teacher.yaml"


@pytest.mark.parametrize("words", [["--data", "nuclei"], ["--data", "coco", "--root", "nowhere"]])
def test_own_data_need_their_folder(words, capsys):
    assert quickstart.main(words) == 1
    assert "--root" in capsys.readouterr().err


def test_the_short_form_is_one_training_on_all_masks(tmp_path):
    args, plan, folder = make_plan(tmp_path, "--supervised")
    stage = quickstart.full_stage(plan)
    assert stage.needs == (plan.source.train_json,)
    (made_first,) = quickstart.data_stage(plan, args, quickstart.NORMAL, folder)
    assert set(stage.needs) <= set(made_first.makes)
    full = quickstart.seed_stages(plan, baseline=False, full=True)[-1]
    assert full == stage  # so that both name the same figure


def test_the_short_form_and_the_upper_bound_exclude_each_other(capsys):
    with pytest.raises(SystemExit):
        quickstart.main(["--supervised", "--full"])
    assert "not allowed with" in capsys.readouterr().err
