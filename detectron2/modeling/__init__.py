"""Networks: backbones, the registry of meta-architectures, and what turns outputs into results."""

from detectron2.layers import ShapeSpec

from .backbone import (
    BACKBONE_REGISTRY,
    FPN,
    Backbone,
    ResNet,
    ResNetBlockBase,
    build_backbone,
    build_resnet_backbone,
    make_stage,
)
from .meta_arch import META_ARCH_REGISTRY, build_model
from .postprocessing import detector_postprocess, sem_seg_postprocess

__all__ = [
    "BACKBONE_REGISTRY",
    "Backbone",
    "FPN",
    "META_ARCH_REGISTRY",
    "ResNet",
    "ResNetBlockBase",
    "ShapeSpec",
    "build_backbone",
    "build_model",
    "build_resnet_backbone",
    "detector_postprocess",
    "make_stage",
    "sem_seg_postprocess",
]
