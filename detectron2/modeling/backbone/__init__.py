"""Feature extractors: ResNets and feature pyramids."""

from .backbone import Backbone
from .build import BACKBONE_REGISTRY, build_backbone
from .fpn import FPN
from .resnet import (
    BasicStem,
    BottleneckBlock,
    DeformBottleneckBlock,
    ResNet,
    ResNetBlockBase,
    build_resnet_backbone,
    make_stage,
)
from .vgg import VGG, build_vgg_backbone

__all__ = [
    "BACKBONE_REGISTRY",
    "Backbone",
    "BasicStem",
    "BottleneckBlock",
    "DeformBottleneckBlock",
    "FPN",
    "ResNet",
    "ResNetBlockBase",
    "VGG",
    "build_backbone",
    "build_resnet_backbone",
    "build_vgg_backbone",
    "make_stage",
]
