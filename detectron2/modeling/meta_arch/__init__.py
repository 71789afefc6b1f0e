"""Whole networks, their registry, and what programs may ask of them."""

from .build import META_ARCH_REGISTRY, build_model
from .interface import MetaArchitecture, meta_architecture
from .rcnn import GeneralizedRCNN
