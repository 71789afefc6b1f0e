"""The configuration that each stage's command leads to, against the published schedules."""

import ast
import json
from pathlib import Path

import pytest

from adet.config import get_cfg
from tests.wsis.plans import stage_named
from wsis.recipes.plan import teacher_solver
from wsis.runner import ROOT, Stage

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
