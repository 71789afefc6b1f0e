"""Every shipped config of a SOLOv2 loads; the reference's ones hold the reference's values."""

from pathlib import Path

import pytest
import torch
import yaml

from adet.config import get_cfg
from adet.modeling.solov2.solov2 import scale_range_pairs
from detectron2.modeling import build_model

ROOT = Path(__file__).resolve().parents[2]


def load(path):
    cfg = get_cfg()
    cfg.merge_from_file(str(path))
    return cfg


FOLDERS = [ROOT / "configs" / name for name in ("SOLOv2", "PointWSSIS", "Quickstart")]
# Those of weak detectors have keys that wsis adds.
ALL = sorted(p for f in FOLDERS for p in f.glob("*.yaml") if not p.stem.startswith("weak_"))
CONFIGS = [path for path in ALL if load(path).MODEL.META_ARCHITECTURE == "SOLOv2"]
SMALL = [path for path in CONFIGS if path.parent.name == "Quickstart"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_config_loads_without_a_dropped_key(path, caplog):
    cfg = load(path)
    assert "dropped" not in caplog.text
    assert yaml.safe_load(cfg.dump())["VERSION"] == 2


@pytest.mark.parametrize(
    "path", [p for p in CONFIGS if not p.stem.startswith("Base")], ids=lambda path: path.stem
)
def test_config_builds_its_network(path):
    cfg = load(path)
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg)
    assert len(model.grids) == len(cfg.MODEL.SOLOV2.INSTANCE_IN_FEATURES)


def test_every_reference_config_is_among_them():
    names = {path.stem for path in CONFIGS}
    assert {"Base-SOLOv2", "R50_3x", "R101_3x", "R101_teacher", "R101_student"} <= names


@pytest.mark.parametrize("path", SMALL, ids=lambda path: path.stem)
def test_small_networks_train_and_infer_on_a_cpu(path, scene):
    cfg = load(path)
    cfg.MODEL.SOLOV2.NUM_CLASSES = max(cfg.MODEL.SOLOV2.NUM_CLASSES, 3)  # of the scene
    torch.manual_seed(0)
    model = build_model(cfg)
    assert all(p.requires_grad for p in model.parameters())
    assert sum(p.numel() for p in model.parameters()) < 5e6
    losses = model.train()([scene, scene])
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    (result,) = model.eval()([scene])
    assert result["instances"].image_size == (192, 192)


@pytest.mark.parametrize(
    ("ours", "reference"),
    [
        ("PointWSSIS/R101_teacher", "cfg_pointwssis_r101_teacher"),
        ("PointWSSIS/R101_student", "cfg_solov2_r101_3x"),
        ("SOLOv2/R101_3x", "cfg_solov2_r101_3x"),
    ],
)
def test_values_equal_the_reference(ours, reference):
    path = ROOT / "tests" / "golden" / f"{reference}.yaml"
    got, want = (yaml.safe_load(load(p).dump()) for p in (ROOT / "configs" / f"{ours}.yaml", path))
    assert got == want


def test_teacher_and_student_hold_the_values_of_the_paper():
    teacher = load(ROOT / "configs" / "PointWSSIS" / "R101_teacher.yaml")
    node = teacher.MODEL.SOLOV2
    assert node.NUM_GRIDS == [80, 64, 32, 24, 12]
    ranges = ((1, 72), (72, 144), (144, 288), (288, 584), (584, 2048))
    assert scale_range_pairs(node.FPN_SCALE_RANGES) == ranges
    assert (node.PROMPT, node.NMS_TYPE, teacher.MODEL.RESNETS.DEPTH) == ("point", "mask", 101)
    solver = teacher.SOLVER
    assert (solver.IMS_PER_BATCH, solver.BASE_LR, solver.WARMUP_ITERS) == (16, 0.05, 3000)
    assert (solver.WARMUP_FACTOR, solver.MOMENTUM, solver.WEIGHT_DECAY) == (0.01, 0.9, 1e-4)
    assert solver.CHECKPOINT_PERIOD == 5000
    assert tuple(teacher.INPUT.MIN_SIZE_TRAIN) == (640, 672, 704, 736, 768, 800)
    assert teacher.INPUT.MAX_SIZE_TRAIN == 1333
    student = load(ROOT / "configs" / "PointWSSIS" / "R101_student.yaml")
    node, solver = student.MODEL.SOLOV2, student.SOLVER
    assert node.NUM_GRIDS == [40, 36, 24, 16, 12]
    assert (node.PROMPT, node.NMS_TYPE) == ("none", "matrix")
    assert (solver.BASE_LR, solver.WARMUP_ITERS, solver.MAX_ITER) == (0.01, 1000, 270000)
    assert tuple(solver.STEPS) == (210000, 250000)


@pytest.mark.parametrize("value", ["1,72,72,144", "(1,72),(72,144)", ((1, 72), (72, 144))])
def test_scale_ranges_may_be_strings(value):
    cfg = get_cfg()
    cfg.merge_from_list(["MODEL.SOLOV2.FPN_SCALE_RANGES", value])
    assert scale_range_pairs(cfg.MODEL.SOLOV2.FPN_SCALE_RANGES) == ((1, 72), (72, 144))


def test_each_config_has_its_own_keys():
    one, two = get_cfg(), get_cfg()
    one.MODEL.SOLOV2.NUM_GRIDS[0] = 99
    assert two.MODEL.SOLOV2.NUM_GRIDS[0] == 40
