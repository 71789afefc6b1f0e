"""Pseudo labels: a teacher's masks on labeled points, as prediction records."""

from .generate import (
    GenerateReport,
    GenerateSettings,
    PromptMapper,
    generate,
    load_prompted_dataset,
)
from .records import KEEP_UNMATCHED, make_record

__all__ = [
    "KEEP_UNMATCHED",
    "GenerateReport",
    "GenerateSettings",
    "PromptMapper",
    "generate",
    "load_prompted_dataset",
    "make_record",
]
