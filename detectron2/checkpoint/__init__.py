"""Saving and loading of models and trainings."""

from fvcore.common.checkpoint import Checkpointer, PeriodicCheckpointer

from .detection_checkpoint import DetectionCheckpointer
from .load_report import LoadReport

__all__ = ["Checkpointer", "DetectionCheckpointer", "LoadReport", "PeriodicCheckpointer"]
