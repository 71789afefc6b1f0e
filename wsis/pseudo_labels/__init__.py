"""Pseudo labels: a teacher's masks on labeled points, as prediction records."""

from weaklabels.shards import RecordShards

from .generate import (
    GenerationReport,
    GenerationSettings,
    PromptMapper,
    file_sha256,
    generate_records,
    load_prompted_dataset,
)
from .records import KEEP_UNMATCHED, make_record

__all__ = [
    "KEEP_UNMATCHED",
    "GenerationReport",
    "GenerationSettings",
    "PromptMapper",
    "RecordShards",
    "file_sha256",
    "generate_records",
    "load_prompted_dataset",
    "make_record",
]
