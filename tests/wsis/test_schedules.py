"""The configuration that each stage's command leads to, against the published schedules."""

import ast
import json
from pathlib import Path

import pytest

from adet.config import get_cfg
from tests.wsis.plans import stage_named
from wsis.recipes.plan import describe_schedule, teacher_solver
from wsis.runner import ROOT, PipelineError, Stage

GOLDEN = Path(__file__).parents[1] / "golden" / "pointwssis_schedules.json"
PUBLISHED = json.loads(GOLDEN.read_text(encoding="utf-8"))
DATASETS = {"coco": "coco_2017_train_{}_{}", "bdd100k": "bdd100k_train_{}_{}"}


def config_of(stage: Stage):
    """The configuration that a stage's program reads from its command."""
    cfg = get_cfg()
    cfg.merge_from_file(str(ROOT / stage.command.flags["config-file"]))
    cfg.merge_from_list([word for pair in stage.command.config.items() for word in pair])
    return cfg


def value_of(cfg, key: str):
    """A configuration value with lists for tuples; texts like "80,64" become numbers."""
    for name in key.split("."):
        cfg = cfg[name]
    if isinstance(cfg, str) and "," in cfg:
        cfg = ast.literal_eval(cfg)
    return json.loads(json.dumps(cfg))


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("subset", PUBLISHED["subsets"])
def test_teacher_and_student_train_as_published(make_plan, subset, dataset):
    plan = make_plan(subset, "--dataset", dataset)
    own = dict(PUBLISHED["subsets"][subset])
    refiner = own.pop("refiner")
    for name, kind, published in (
        ("teacher", "s", {**PUBLISHED["teacher"], **own}),
        ("student", "sw_refined", PUBLISHED["student"]),
    ):
        cfg = config_of(stage_named(plan, name))
        assert {key: value_of(cfg, key) for key in published} == published
        assert cfg.DATASETS.TRAIN == (DATASETS[dataset].format(subset, kind),)
    assert teacher_solver(plan)[1] == refiner
    for number, iteration in enumerate(refiner, start=1):
        weights = config_of(stage_named(plan, f"strong_{number}")).MODEL.WEIGHTS
        assert weights.endswith(f"teacher/model_{iteration:07d}.pth")


def test_every_published_subset_can_be_run(make_plan):
    for subset in ("60p", "3p"):
        with pytest.raises(SystemExit):
            make_plan(subset)
    assert [make_plan(subset).subset for subset in PUBLISHED["subsets"]] == [
        *("1p", "2p", "5p", "10p", "20p", "30p", "40p", "50p")
    ]


def test_own_values_win_over_the_published_ones(make_plan):
    words = ("SEED", "5", "TEST.EVAL_PERIOD", "7", "MODEL.SOLOV2.EVAL_PSEUDO_LABEL", "False")
    for name in ("teacher", "student"):
        cfg = config_of(stage_named(make_plan("10p", *words), name))
        assert (cfg.SEED, cfg.TEST.EVAL_PERIOD) == (5, 7)
        assert cfg.MODEL.SOLOV2.EVAL_PSEUDO_LABEL is False


def test_images_without_labels_are_kept_on_request(make_plan):
    cfg = config_of(stage_named(make_plan("10p", "--keep-unlabeled"), "student"))
    assert cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS is False
    cfg = config_of(stage_named(make_plan("10p", "--keep-unlabeled"), "teacher"))
    assert cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS is True


def test_the_batch_is_kept_on_request(make_plan):
    plan = make_plan("10p", "--keep-batch-size", gpus=2)
    assert teacher_solver(plan)[1] == [29999, 39999]
    for name in ("teacher", "student"):
        cfg = config_of(stage_named(plan, name))
        assert (cfg.SOLVER.REFERENCE_WORLD_SIZE, cfg.SOLVER.IMS_PER_BATCH) == (0, 16)
    with pytest.raises(PipelineError, match="3 GPUs cannot share 16 images evenly"):
        make_plan("10p", "--keep-batch-size", gpus=3)
    make_plan("10p", "--keep-batch-size", "SOLVER.IMS_PER_BATCH", "15", gpus=3)


@pytest.mark.parametrize(
    ("gpus", "words", "says"),
    [
        (8, (), "batches of 16 images on 8 GPUs, learning rates and iterations not scaled"),
        (2, (), "batches of 4 images on 2 GPUs, learning rates x 0.25, iterations x 4, scaled"),
        (2, (), "--keep-batch-size keeps 16 images"),
        (2, ("--keep-batch-size",), "batches of 16 images on 2 GPUs, learning rates and iterat"),
        (0, (), "batches of 16 images on the CPU"),
        (8, ("--dataset", "bdd100k"), "Iterations: COCO's for this share of images"),
        (8, ("--dataset", "bdd100k"), "(COCO has 118287, it has 7000)"),
        (8, ("--dataset", "bdd100k", "--scale-to-images"), "COCO's x 0.0592, scaled to the number"),
    ],
)
def test_the_user_is_told_how_the_schedule_is_scaled(make_plan, gpus, words, says):
    assert says in "\n".join(describe_schedule(make_plan("10p", *words, gpus=gpus)))


def test_schedules_scale_to_the_images_of_another_dataset(make_plan):
    plan = make_plan("10p", "--dataset", "bdd100k", "--scale-to-images")
    teacher, student = (config_of(stage_named(plan, name)) for name in ("teacher", "student"))
    share = 7000 / 118287
    for cfg, iterations, steps, warmup in (
        (teacher, 45001, (35000, 40000), 3000),
        (student, 270000, (210000, 250000), 1000),
    ):
        assert cfg.SOLVER.MAX_ITER == round(iterations * share)
        assert cfg.SOLVER.STEPS == pytest.approx([step * share for step in steps], abs=1)
        assert cfg.SOLVER.WARMUP_ITERS == round(warmup * share)
        assert cfg.TEST.EVAL_PERIOD == round(5000 * share)
    saved = [(i + 1) / teacher.SOLVER.CHECKPOINT_PERIOD for i in teacher_solver(plan)[1]]
    assert saved == [6, 8]  # of nine checkpoints, as 29999 and 39999 of 45001


def test_own_data_are_counted_where_their_schedule_is_scaled(make_plan, tmp_path):
    images = [{"id": i, "file_name": f"{i}.jpg", "height": 8, "width": 8} for i in range(1, 1184)]
    path = tmp_path / "all.json"
    path.write_text(json.dumps({"images": images, "annotations": [], "categories": []}))
    words = ["--dataset", "own", "--image-root", "i", "--val-json", "v.json", "--val-root", "v"]
    words += ["--train-json", str(path), "--scale-to-images"]
    solver, saved = teacher_solver(make_plan("10p", *words))
    assert solver["SOLVER.MAX_ITER"] == "450"  # 1183 of 118287 images
    assert saved == [299, 399]
    path.unlink()
    with pytest.raises(FileNotFoundError, match="all.json"):
        make_plan("10p", *words)
