"""Small networks whose checkpoints the tests make and read."""

import pytest
from torch import nn

from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_backbone


@pytest.fixture
def resnet_config() -> CfgNode:
    """A narrow R-50 with frozen batch norms and all stages trainable."""
    cfg = get_cfg()
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 4
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 8
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 4
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res5"]
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    return cfg


@pytest.fixture
def model(resnet_config: CfgNode) -> nn.Module:
    """That ResNet as `backbone` of a network with a head."""
    return nn.ModuleDict({"backbone": build_backbone(resnet_config), "head": nn.Linear(3, 2)})
