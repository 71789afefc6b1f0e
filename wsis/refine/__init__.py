"""Refinement of pseudo labels: what a refiner is, which there are, and the driver for all."""

from .driver import REFINERS, RefineReport, RefineSettings, refine
from .protocol import KEPT_PRIOR, RefinedGroup, Refiner

__all__ = [
    "KEPT_PRIOR",
    "REFINERS",
    "RefineReport",
    "RefineSettings",
    "RefinedGroup",
    "Refiner",
    "refine",
]
