"""The pipeline: published schedules, skipping, resuming, and errors that say what to do."""

import itertools
import json
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from detectron2.config import get_cfg
from detectron2.engine import DefaultTrainer
from wsis import runner as pipeline
from wsis.recipes.pointwssis import SCHEDULES, Stage, build_stages, teacher_solver, tuple_text


@pytest.fixture
def make_plan(tmp_path, monkeypatch):
    """A plan from command-line words; everything lies below tmp_path."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    monkeypatch.setenv("OUTPUT_DIR", str(tmp_path / "output"))

    def build(*words: str, gpus: int = 8):
        monkeypatch.setenv("NUM_GPUS", str(gpus))
        args = pipeline.build_parser().parse_intermixed_args(words)
        return pipeline.make_plan(args)

    return build


def option(command: tuple[str, ...], key: str) -> str:
    """The last value of an option or configuration key of a command."""
    return [value for name, value in zip(command, command[1:], strict=False) if name == key][-1]


@pytest.mark.parametrize("subset", SCHEDULES)
def test_published_schedule_reaches_the_commands(make_plan, subset):
    plan, schedule = make_plan(subset), SCHEDULES[subset]
    stages = {stage.name: stage for stage in build_stages(plan)}
    assert list(stages) == [
        *("split", "teacher", "strong_1", "strong_2", "refiner"),
        *("weak", "refine", "merge", "student"),
    ]
    teacher = stages["teacher"].command
    assert int(option(teacher, "SOLVER.MAX_ITER")) == schedule.max_iter
    assert option(teacher, "SOLVER.STEPS") == tuple_text(schedule.steps)
    assert int(option(teacher, "SOLVER.CHECKPOINT_PERIOD")) == 5000
    assert option(teacher, "DATASETS.TRAIN") == f"('coco_2017_train_{subset}_s',)"
    for number, iteration in enumerate(schedule.refiner_iterations, start=1):
        weights = option(stages[f"strong_{number}"].command, "MODEL.WEIGHTS")
        assert weights.endswith(f"teacher/model_{iteration:07d}.pth")
    assert "SOLVER.MAX_ITER" not in stages["student"].command  # its config holds the schedule
    assert option(stages["student"].command, "DATASETS.TRAIN").endswith("_sw_refined',)")


def test_every_stage_reads_what_earlier_ones_make(make_plan):
    for words in (["10p"], ["10p", "--without-refiner"], ["5p", "--dataset", "bdd100k"]):
        plan = make_plan(*words)
        given = {plan.source.train_json, plan.source.image_root, plan.source.val_json}
        checkpoints = {
            plan.output / "teacher" / f"model_{iteration:07d}.pth"
            for iteration in teacher_solver(plan)[1]
        }
        for stage in build_stages(plan):
            assert set(stage.needs) <= given | checkpoints, stage.name
            given |= set(stage.makes)


@pytest.mark.parametrize("max_iter", [2, 3, 7, 40, 1000, 45001])
def test_own_iterations_keep_two_saved_checkpoints(make_plan, max_iter):
    plan = make_plan("10p", "SOLVER.MAX_ITER", str(max_iter))
    solver, iterations = teacher_solver(plan)
    period = int(solver[-1])
    assert all((iteration + 1) % period == 0 for iteration in iterations)
    assert all(0 <= iteration < max_iter for iteration in iterations)
    published = SCHEDULES["10p"]
    for iteration, wanted in zip(iterations, published.refiner_iterations, strict=True):
        assert abs((iteration + 1) / max_iter - (wanted + 1) / published.max_iter) < 0.5 / 2 + 0.1


def test_other_numbers_of_gpus_scale_the_checkpoints(make_plan):
    plan = make_plan("10p", gpus=4)
    assert teacher_solver(plan)[1] == [59999, 79999]
    for gpus, subset in itertools.product((1, 3, 5, 6, 7, 8, 12, 16, 24, 32), SCHEDULES):
        for words in ((), ("SOLVER.MAX_ITER", "20")):
            plan = make_plan(subset, *words, gpus=gpus)
            options, iterations = teacher_solver(plan)
            cfg = get_cfg()
            cfg.merge_from_list([*options, "SOLVER.REFERENCE_WORLD_SIZE", "8"])
            scaled = DefaultTrainer.auto_scale_workers(cfg, gpus).SOLVER
            for iteration in iterations:  # those that a training saves
                assert 0 <= iteration < scaled.MAX_ITER
                assert (iteration + 1) % scaled.CHECKPOINT_PERIOD == 0
    assert option(build_stages(plan)[1].command, "SOLVER.REFERENCE_WORLD_SIZE") == "8"
    assert "SOLVER.REFERENCE_WORLD_SIZE" not in build_stages(make_plan("10p", gpus=8))[1].command


def test_dry_run_prints_the_commands_and_runs_nothing(make_plan, tmp_path, capsys):
    plan = make_plan("10p")
    assert pipeline.main(["10p", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    for stage in build_stages(plan):
        assert shlex.join(stage.command) in printed
    assert not (tmp_path / "output").exists()


def test_every_subset_has_a_script_of_its_own(tmp_path):
    """Each prints the commands of its subset; nothing is run."""
    scripts = sorted((pipeline.ROOT / "scripts").glob("*_*p.sh"))
    names = {f"coco_{subset}.sh" for subset in SCHEDULES} | {"bdd100k_10p.sh"}
    assert names <= {script.name for script in scripts}
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment |= {"NUM_GPUS": "8", "OUTPUT_DIR": str(tmp_path / "output"), "VIRTUAL_ENV": "set"}
    for name in ("coco_10p.sh", "bdd100k_10p.sh"):
        command = ["bash", str(pipeline.ROOT / "scripts" / name), "--dry-run"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "SOLVER.MAX_ITER 45001 SOLVER.STEPS '(35000,40000)'" in done.stdout
        assert f"_{name.removesuffix('.sh').split('_')[1]}_sw_refined" in done.stdout
    assert not (tmp_path / "output").exists()


def test_another_student_reads_the_same_labels(make_plan):
    student = build_stages(make_plan("10p", "--student", "mask_rcnn"))[-1].command
    assert "mask_rcnn_R_101_FPN_3x" in option(student, "--config-file")
    assert option(student, "INPUT.MASK_FORMAT") == "bitmask"
    assert "SOLVER.STEPS" not in student
    assert option(student, "DATALOADER.FILTER_EMPTY_ANNOTATIONS") == "False"
    assert (pipeline.ROOT / option(student, "--config-file")).is_file()


def test_own_iterations_and_steps_reach_teacher_and_student(make_plan):
    stages = {s.name: s for s in build_stages(make_plan("10p", "SOLVER.MAX_ITER", "27000"))}
    assert option(stages["student"].command, "SOLVER.STEPS") == "(21000,25000)"
    assert option(stages["teacher"].command, "SOLVER.STEPS") == "(21000,23999)"  # of 45001
    stages = build_stages(make_plan("10p", "SOLVER.STEPS", "(1,2)"))
    for stage in stages:
        if "SOLVER.STEPS" in stage.command:
            assert option(stage.command, "SOLVER.STEPS") == "(1,2)"


def test_own_weights_are_those_that_a_training_starts_from(make_plan):
    for stage in build_stages(make_plan("10p", "MODEL.WEIGHTS", "own.pth")):
        if "tools/generate_pseudo_labels.py" in stage.command:
            assert "teacher" in option(stage.command, "MODEL.WEIGHTS")
        if "tools/train_net.py" in stage.command:
            assert option(stage.command, "MODEL.WEIGHTS") == "own.pth"


def toy_stages(plan, code: str = "") -> list[Stage]:
    """Two stages that append a line to what they make; the second may fail."""

    def stage(name: str, needs: tuple[Path, ...], extra: str = "") -> Stage:
        made = plan.output / f"{name}.txt"
        script = f"{extra}\nopen({str(made)!r}, 'a').write('x')"
        return Stage(name, name, (sys.executable, "-c", script), needs, (made,))

    plan.output.mkdir(exist_ok=True)
    first = stage("first", ())
    return [first, stage("second", first.makes, code)]


def test_finished_stages_are_skipped_and_broken_ones_run_again(make_plan):
    plan = make_plan("10p")
    broken = toy_stages(plan, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(pipeline.PipelineError, match="'second' ended with exit code -9"):
        pipeline.run(plan, broken)
    stages = toy_stages(plan)
    assert pipeline.run(plan, stages) == 1
    assert pipeline.run(plan, stages) == 0
    assert [stage.makes[0].read_text() for stage in stages] == ["x", "x"]


def test_another_command_is_not_taken_for_finished(make_plan):
    plan = make_plan("10p")
    pipeline.run(plan, toy_stages(plan))
    changed = [replace(stage, command=(*stage.command, "more")) for stage in toy_stages(plan)]
    with pytest.raises(pipeline.PipelineError, match="--from first"):
        pipeline.run(plan, changed)


def test_machines_agree_on_what_is_finished(make_plan, monkeypatch):
    """Also when a job starts again with another first machine."""
    monkeypatch.setenv("NNODES", "2")
    for rank, first in (("0", "here"), ("1", "here"), ("1", "there")):
        monkeypatch.setenv("NODE_RANK", rank)
        monkeypatch.setenv("MASTER_ADDR", first)
        plan = make_plan("10p")
        stages = build_stages(plan)
        for stage in stages:
            for path in stage.makes:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
            if (rank, first) == ("0", "here"):
                pipeline.write_marker(plan, stage, 1.0)
        assert all(pipeline.is_finished(plan, stage) for stage in stages)


def test_a_failure_on_the_first_machine_stops_the_others(make_plan, monkeypatch):
    monkeypatch.setenv("NNODES", "2")
    monkeypatch.setenv("MASTER_ADDR", "first")
    monkeypatch.setenv("NODE_RANK", "0")
    monkeypatch.setattr(pipeline, "SECONDS_BETWEEN_LOOKS", 0.01)
    plan = make_plan("10p")
    broken = toy_stages(plan, "raise SystemExit(3)")
    with pytest.raises(pipeline.PipelineError, match="'second' ended with exit code 3"):
        pipeline.run(plan, broken)
    monkeypatch.setenv("NODE_RANK", "1")
    old = pipeline.failure(plan, broken[1]).read_text()

    def fail_again(seconds):
        pipeline.failure(plan, broken[1]).write_text("again " + old)

    monkeypatch.setattr(pipeline.time, "sleep", fail_again)  # the old failure alone stops nobody
    with pytest.raises(pipeline.PipelineError, match="on the first machine.*exit code 3"):
        pipeline.run(plan, broken)


def test_unfit_inputs_on_the_first_machine_stop_the_others_too(make_plan, monkeypatch):
    monkeypatch.setenv("NNODES", "2")
    monkeypatch.setenv("MASTER_ADDR", "first")
    monkeypatch.setenv("NODE_RANK", "0")
    plan = make_plan("10p")
    stage = toy_stages(plan)[0]

    def refuse(plan, stage):
        raise ValueError("category id 1 is 'dog'")

    monkeypatch.setattr(pipeline, "check_needs", refuse)
    with pytest.raises(ValueError, match="'dog'"):
        pipeline.run(plan, [stage])
    assert "'dog'" in pipeline.failure(plan, stage).read_text()


def test_on_several_machines_results_are_set_aside_once(make_plan, monkeypatch, capsys):
    monkeypatch.setenv("NNODES", "2")
    monkeypatch.setenv("MASTER_ADDR", "first")
    monkeypatch.setenv("NODE_RANK", "0")
    make_plan("10p")
    assert pipeline.main(["10p", "--from", "merge"]) == 1
    assert "--set-aside" in capsys.readouterr().err
    assert pipeline.main(["10p", "--set-aside", "merge"]) == 0


def test_redoing_from_a_stage_keeps_the_old_results(make_plan):
    plan = make_plan("10p")
    stages = toy_stages(plan)
    pipeline.run(plan, stages)
    (plan.output / "second.txt.parts").mkdir()
    pipeline.set_aside(plan, stages, "second")
    assert pipeline.run(plan, stages) == 1
    assert len(list(plan.output.glob("second.txt.old-*"))) == 1
    assert not (plan.output / "second.txt.parts").exists()
    with pytest.raises(pipeline.PipelineError, match="stages are first, second"):
        pipeline.set_aside(plan, stages, "third")


def test_a_stage_that_makes_nothing_is_an_error(make_plan):
    plan = make_plan("10p")
    first = replace(toy_stages(plan)[0], command=(sys.executable, "-c", "pass"))
    with pytest.raises(pipeline.PipelineError, match="did not make"):
        pipeline.run(plan, [first])


def test_missing_data_says_how_to_get_it(make_plan, capsys):
    make_plan("10p")
    assert pipeline.main(["10p"]) == 1
    message = capsys.readouterr().err
    assert "instances_train2017.json" in message and "cocodataset.org" in message


def test_a_given_split_is_used_and_its_images_are_looked_for(make_plan, monkeypatch):
    plan = make_plan("10p")
    # The disk of the machine that runs the tests may be small.
    monkeypatch.setattr(pipeline, "check_disk", lambda plan: None)
    source = plan.source
    source.val_json.parent.mkdir(parents=True)
    source.val_json.touch()
    source.image_root.mkdir(parents=True)
    split, teacher = build_stages(plan)[:2]

    def check(weak_id: int, weak_name: str) -> None:
        for kind, number, name in (("s", 1, "cat"), ("w", weak_id, weak_name)):
            images = [{"id": number, "file_name": "a.jpg", "height": 9, "width": 9}]
            categories = [{"id": 1, "name": name}]
            content = {"images": images, "annotations": [], "categories": categories}
            source.path("10p", kind).write_text(json.dumps(content))
        pipeline.check_needs(plan, teacher)

    with pytest.raises(pipeline.PipelineError, match="a.jpg, which is missing"):
        check(2, "cat")
    (source.image_root / "a.jpg").touch()
    with pytest.raises(ValueError, match="1 images have strong labels.*e.g. image id 1"):
        check(1, "cat")
    with pytest.raises(ValueError, match="category id 1 is 'dog' in"):
        check(2, "dog")
    check(2, "cat")
    assert pipeline.is_finished(plan, split)


def test_another_split_is_refused_once_one_was_made(make_plan):
    plan = make_plan("10p")
    split = build_stages(plan)[0]
    for path in split.makes:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    pipeline.write_marker(plan, split, 1.0)
    other = build_stages(make_plan("10p", "--split", "--seed 7"))[0]
    with pytest.raises(pipeline.PipelineError, match="--from split"):
        pipeline.is_finished(plan, other)


def test_too_little_disk_is_said_before_the_training(make_plan, monkeypatch):
    usage = type("Usage", (), {"free": 3 * 10**9})
    monkeypatch.setattr(pipeline.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(pipeline.PipelineError, match="3.0 GB free"):
        pipeline.check_disk(make_plan("10p"))
    pipeline.check_disk(make_plan("10p", "SOLVER.CHECKPOINT_PERIOD", "20000"))


def test_several_machines_need_their_addresses(make_plan, monkeypatch):
    monkeypatch.setenv("NNODES", "2")
    monkeypatch.delenv("NODE_RANK", raising=False)
    with pytest.raises(pipeline.PipelineError, match="NODE_RANK and MASTER_ADDR"):
        make_plan("10p")
    monkeypatch.setenv("NODE_RANK", "1")
    monkeypatch.setenv("MASTER_ADDR", "first")
    teacher = build_stages(make_plan("10p", gpus=4))[1].command
    assert "--nnodes=2" in teacher and "--node-rank=1" in teacher
    assert "SOLVER.REFERENCE_WORLD_SIZE" not in teacher  # 2 x 4 GPUs are the published 8


@pytest.mark.parametrize(
    "words",
    [
        ["10p", "SOLVER.MAX_ITER"],
        ["10p", "--dataset", "own"],
        ["10p", "SOLVER.CHECKPOINT_PERIOD", "50000"],
    ],
)
def test_bad_arguments_are_refused(words, capsys):
    assert pipeline.main(words) == 1
    assert capsys.readouterr().err.startswith("pipeline: ")
