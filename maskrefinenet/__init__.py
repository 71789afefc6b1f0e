"""MaskRefineNet: refine instance masks from an image crop, a labeled point and a prior mask."""

from .fast_forms import FastMaskRefineNet
from .model import MaskRefineNet
from .refiner import MaskRefiner

__all__ = ["FastMaskRefineNet", "MaskRefineNet", "MaskRefiner"]
