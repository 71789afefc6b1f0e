"""Save and load models and the state of trainings."""

from fvcore.common.checkpoint import Checkpointer, PeriodicCheckpointer

from .detection_checkpoint import DetectionCheckpointer
from .load_report import LoadReport
