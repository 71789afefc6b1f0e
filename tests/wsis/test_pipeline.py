"""PointWSSIS as stages: what they read and make, how options reach them, errors that help."""

import itertools
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from detectron2.config import get_cfg
from detectron2.engine import DefaultTrainer
from tests.wsis.plans import stage_named
from wsis.cli.main import program
from wsis.recipes import pointwssis as recipe
from wsis.recipes.plan import SCHEDULES, teacher_solver
from wsis.recipes.pointwssis import build_stages, make_run
from wsis.runner import ROOT, PipelineError, State, find_states
from wsis.runner.markers import FINISHED, Marker


def test_every_stage_reads_what_earlier_ones_make(make_plan):
    for words in (["10p"], ["10p", "--without-refiner"], ["5p", "--dataset", "bdd100k"]):
        plan = make_plan(*words)
        given = {plan.source.train_json, plan.source.image_root, plan.source.val_json}
        names = [stage.name for stage in build_stages(plan)]
        for stage in build_stages(plan):
            assert set(stage.needs) <= given, stage.name
            given |= {*stage.makes, *stage.leaves}
    refining = ["strong_1", "strong_2", "refiner"]
    assert [stage.name for stage in build_stages(make_plan("10p"))] == [
        *("split", "teacher", *refining, "weak", "refine", "merge", "student")
    ]
    names = [stage.name for stage in build_stages(make_plan("10p", "--without-refiner"))]
    assert names == ["split", "teacher", "weak", "merge", "student"]


@pytest.mark.parametrize("max_iter", [2, 3, 7, 40, 1000, 45001])
def test_own_iterations_keep_two_saved_checkpoints(make_plan, max_iter):
    solver, iterations = teacher_solver(make_plan("10p", "SOLVER.MAX_ITER", str(max_iter)))
    period = int(solver["SOLVER.CHECKPOINT_PERIOD"])
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
            options, iterations = teacher_solver(make_plan(subset, *words, gpus=gpus))
            cfg = get_cfg()
            cfg.merge_from_list([word for pair in options.items() for word in pair])
            cfg.SOLVER.REFERENCE_WORLD_SIZE = 8
            scaled = DefaultTrainer.auto_scale_workers(cfg, gpus).SOLVER
            for iteration in iterations:  # those that a training saves
                assert 0 <= iteration < scaled.MAX_ITER
                assert (iteration + 1) % scaled.CHECKPOINT_PERIOD == 0
    teacher = stage_named(plan, "teacher").command
    assert teacher.config["SOLVER.REFERENCE_WORLD_SIZE"] == "8"
    teacher = stage_named(make_plan("10p", gpus=8), "teacher").command
    assert "SOLVER.REFERENCE_WORLD_SIZE" not in teacher.config


@pytest.mark.parametrize("words", [["pipeline", "10p"], ["run", "pointwssis", "10p"]])
def test_dry_run_prints_the_commands_and_runs_nothing(make_plan, tmp_path, capsys, words):
    plan = make_plan("10p", "SEED", "3")
    assert program(words[0], [*words[1:], "SEED", "3", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    for stage in build_stages(plan):
        assert shlex.join(stage.command.argv(plan.machines)) in printed
    assert not (tmp_path / "output").exists()


def test_every_subset_has_a_script_of_its_own(tmp_path):
    """Each prints the commands of its subset; nothing is run."""
    scripts = {script.name for script in (ROOT / "scripts").glob("*_*p.sh")}
    assert scripts == {f"{name}_{p}.sh" for name in ("coco", "bdd100k") for p in SCHEDULES}
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment |= {"NUM_GPUS": "8", "OUTPUT_DIR": str(tmp_path / "output"), "VIRTUAL_ENV": "set"}
    for name in ("coco_1p.sh", "bdd100k_10p.sh"):
        command = ["bash", str(ROOT / "scripts" / name), "--dry-run"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        subset = name.removesuffix(".sh").split("_")[1]
        published, (first, second) = SCHEDULES[subset], SCHEDULES[subset].steps
        solver = f"SOLVER.MAX_ITER {published.max_iter} SOLVER.STEPS '({first},{second})'"
        assert solver in done.stdout
        assert done.stdout.count("SEED 1 TEST.EVAL_PERIOD 5000") == 2  # teacher and student
        assert f"_{subset}_sw_refined" in done.stdout
    assert not (tmp_path / "output").exists()


def test_another_student_reads_the_same_labels(make_plan):
    student = stage_named(make_plan("10p", "--student", "mask_rcnn"), "student").command
    assert "mask_rcnn_R_101_FPN_3x" in student.flags["config-file"]
    assert student.config["INPUT.MASK_FORMAT"] == "bitmask"
    assert "SOLVER.STEPS" not in student.config
    assert "DATALOADER.FILTER_EMPTY_ANNOTATIONS" not in student.config
    assert (ROOT / student.flags["config-file"]).is_file()


def test_own_iterations_and_steps_reach_teacher_and_student(make_plan):
    plan = make_plan("10p", "SOLVER.MAX_ITER", "27000")
    steps = {n: stage_named(plan, n).command.config["SOLVER.STEPS"] for n in ("teacher", "student")}
    assert steps == {"student": "(21000,25000)", "teacher": "(21000,23999)"}  # of 270000, 45001
    for stage in build_stages(make_plan("10p", "SOLVER.STEPS", "(1,2)")):
        assert stage.command.config.get("SOLVER.STEPS", "(1,2)") == "(1,2)"


def test_own_weights_are_those_that_a_training_starts_from(make_plan):
    for stage in build_stages(make_plan("10p", "MODEL.WEIGHTS", "own.pth")):
        if stage.command.program == "generate":
            assert "teacher" in stage.command.config["MODEL.WEIGHTS"]
        if stage.command.program == "train":
            assert stage.command.config["MODEL.WEIGHTS"] == "own.pth"


def test_options_of_the_refiner_and_of_the_split_are_flags(make_plan):
    refiner = "--encoder resnet18 --lr=0.1 --class-agnostic"
    plan = make_plan("10p", "--refiner", refiner, "--split", "--seed 7 --percent 3")
    flags = stage_named(plan, "refiner").command.flags
    assert (flags["encoder"], flags["lr"], flags["class-agnostic"]) == ("resnet18", "0.1", True)
    assert flags["records"] == tuple(plan.output / f"strong_{i}.jsonl" for i in (1, 2))
    assert flags["recipe"] == "paper"
    assert "ours" in stage_named(
        make_plan("10p", "--refiner", "--recipe ours"), "refiner"
    ).command.argv(plan.machines)
    flags = stage_named(plan, "split").command.flags
    assert (flags["seed"], flags["percent"]) == ("7", "10")  # the subset decides
    assert stage_named(plan, "refine").command.flags["weights"].name == "last.pth"
    with pytest.raises(PipelineError, match="'64' belongs to no --option"):
        make_plan("10p", "--split", "64 --seed 1")


@pytest.mark.parametrize("spelling", ["records", "predictions"])
def test_a_refiner_with_a_validation_refines_with_its_best(make_plan, spelling):
    plan = make_plan("10p", "--refiner", f"--val-{spelling} v.jsonl --val-annotations v.json")
    best = plan.output / "refiner" / "best.pth"
    assert stage_named(plan, "refiner").makes == (best,)
    refine = stage_named(plan, "refine")
    assert refine.command.flags["weights"] == best and best in refine.needs


def test_missing_data_says_how_to_get_it(make_plan, capsys):
    make_plan("10p")
    assert program("pipeline", ["10p"]) == 2
    message = capsys.readouterr().err
    assert "instances_train2017.json" in message and "cocodataset.org" in message


def test_images_of_a_split_are_looked_for(make_plan, monkeypatch):
    plan = make_plan("10p")
    source = plan.source
    source.train_json.parent.mkdir(parents=True)
    source.image_root.mkdir(parents=True)

    def check(weak_id: int, weak_name: str) -> None:
        for kind, number, name in (("s", 1, "cat"), ("w", weak_id, weak_name)):
            images = [{"id": number, "file_name": "a.jpg", "height": 9, "width": 9}]
            categories = [{"id": 1, "name": name}]
            content = {"images": images, "annotations": [], "categories": categories}
            source.path("10p", kind).write_text(json.dumps(content))
        stage_named(plan, "teacher").before[0]()

    with pytest.raises(PipelineError, match="a.jpg, which is missing"):
        check(2, "cat")
    (source.image_root / "a.jpg").touch()
    with pytest.raises(ValueError, match="1 images have strong labels.*e.g. image id 1"):
        check(1, "cat")
    with pytest.raises(ValueError, match="category id 1 is 'dog' in"):
        check(2, "dog")
    check(2, "cat")


def test_another_split_is_refused_once_one_was_made(make_plan):
    run = make_run(make_plan("10p"))
    split = run.stages[0]
    for path in split.makes:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    Marker(FINISHED, split.command.inputs()).write(run.marker(split))
    assert find_states(run)[0] == (split, State.FINISHED)
    with pytest.raises(PipelineError, match="--seed: absent then.*--from split"):
        find_states(make_run(make_plan("10p", "--split", "--seed 7")))


def test_too_little_disk_is_said_before_the_training(make_plan, monkeypatch):
    usage = type("Usage", (), {"free": 3 * 10**9})
    monkeypatch.setattr(recipe.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(PipelineError, match="3.0 GB free"):
        stage_named(make_plan("10p"), "teacher").before[1]()
    stage_named(make_plan("10p", "SOLVER.CHECKPOINT_PERIOD", "20000"), "teacher").before[1]()


def test_several_machines_need_their_addresses(make_plan, monkeypatch):
    monkeypatch.setenv("NNODES", "2")
    monkeypatch.delenv("NODE_RANK", raising=False)
    with pytest.raises(PipelineError, match="NODE_RANK and MASTER_ADDR"):
        make_plan("10p")
    monkeypatch.setenv("NODE_RANK", "1")
    monkeypatch.setenv("MASTER_ADDR", "first")
    plan = make_plan("10p", gpus=4)
    words = stage_named(plan, "teacher").command.argv(plan.machines)
    assert "--nnodes=2" in words and "--node-rank=1" in words
    assert "SOLVER.REFERENCE_WORLD_SIZE" not in words  # 2 x 4 GPUs are the published 8


def test_on_several_machines_results_are_set_aside_once(make_plan, monkeypatch, capsys):
    monkeypatch.setenv("NNODES", "2")
    monkeypatch.setenv("MASTER_ADDR", "first")
    monkeypatch.setenv("NODE_RANK", "0")
    make_plan("10p")
    assert program("pipeline", ["10p", "--from", "merge"]) == 2
    assert "--set-aside" in capsys.readouterr().err
    assert program("pipeline", ["10p", "--set-aside", "merge"]) == 0


@pytest.mark.parametrize(
    "words",
    [
        ["10p", "SOLVER.MAX_ITER"],
        ["10p", "--dataset", "own"],
        ["10p", "SOLVER.CHECKPOINT_PERIOD", "50000"],
    ],
)
def test_bad_arguments_are_refused(words, capsys):
    assert program("pipeline", words) == 2
    assert capsys.readouterr().err.startswith("wsis pipeline: ")
