"""Every config of a two-stage detector builds the detector that its name says."""

from pathlib import Path

import pytest
import torch

from detectron2 import model_zoo
from detectron2.modeling import GeneralizedRCNN, build_model
from detectron2.modeling.roi_heads import Res5ROIHeads, StandardROIHeads

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
FOLDERS = ("COCO-Detection", "COCO-InstanceSegmentation", "Misc")
ITERATIONS = {"1x": 90000, "3x": 270000, "9x": 202500}  # the 9x one has batches of 64
NAMES = [f"{folder}/{path.name}" for folder in FOLDERS for path in (CONFIGS / folder).glob("*")]
QUICKSTART = "Quickstart/mask_rcnn_shapes.yaml"


@pytest.mark.parametrize("name", [*sorted(NAMES), QUICKSTART])
def test_config_builds_its_model(name, caplog):
    cfg = model_zoo.get_config(name)
    assert not caplog.messages  # no key is dropped
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg)
    assert isinstance(model, GeneralizedRCNN)
    kind = Res5ROIHeads if "_C4_" in name else StandardROIHeads
    assert type(model.roi_heads) is kind
    assert model.roi_heads.mask_on == ("mask_rcnn" in name)
    strides = {"_C4_": [16], "_DC5_": [16], "_FPN_": [4, 8, 16, 32, 64]}
    for mark, want in strides.items():
        if mark in name:
            assert model.proposal_generator.anchor_generator.strides == want
    if name != QUICKSTART:
        assert f"R_{cfg.MODEL.RESNETS.DEPTH}_" in name
        schedule = next(part for part in Path(name).stem.split("_") if part in ITERATIONS)
        assert cfg.SOLVER.MAX_ITER == ITERATIONS[schedule]
    if name.startswith("Misc/scratch"):
        assert cfg.MODEL.WEIGHTS == "" and all(p.requires_grad for p in model.parameters())
        norms = {type(m).__name__ for m in model.modules() if "Norm" in type(m).__name__}
        assert norms == {"GroupNorm"}


def test_the_published_weights_have_their_configs():
    for name in model_zoo.model_zoo.PUBLISHED:
        assert Path(model_zoo.get_config_file(f"{name}.yaml")).is_relative_to(CONFIGS)
