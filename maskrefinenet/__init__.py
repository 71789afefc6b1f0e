"""MaskRefineNet: refine instance masks from an image crop, a labelled point and a prior mask."""

from .model import MaskRefineNet
from .refiner import MaskRefiner

__all__ = ["MaskRefineNet", "MaskRefiner"]
