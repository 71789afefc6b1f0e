"""Every config of a two-stage detector builds the detector that its name says."""

from pathlib import Path

import pytest
import torch

from detectron2 import model_zoo
from detectron2.modeling import GeneralizedRCNN, build_model
from detectron2.modeling.roi_heads import Res5ROIHeads, StandardROIHeads

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
FOLDERS = ("COCO-Detection", "COCO-InstanceSegmentation")
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
        assert cfg.SOLVER.MAX_ITER == (270000 if "3x" in name else 90000)


def test_the_published_weights_have_their_configs():
    published = [name for name in model_zoo.model_zoo.PUBLISHED if name.split("/")[0] in FOLDERS]
    assert published
    for name in published:
        assert f"{name}.yaml" in NAMES
