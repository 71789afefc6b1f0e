"""Prediction records: one JSON object per image and line."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from weaklabels.files import missing_keys

RECORD_KEYS = ("image_id", "file_name", "height", "width", "instances")
INSTANCE_KEYS = ("category_id", "score", "segmentation")


def read_records(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Stream prediction records as ("file:line", record), each checked for its form.

    Raises:
        ValueError: a line is no whole record; the message names file, line and what is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected prediction records (.jsonl)")
    with open(path, encoding="utf-8") as handle:
        for number, line in enumerate(handle, 1):
            where = f"{path}:{number}"
            try:
                record = json.loads(line)
            except ValueError as error:
                hint = "" if line.endswith("\n") else "; was the run that writes it cut off?"
                raise ValueError(f"{where}: not a json record ({error}){hint}") from error
            missing = missing_keys(record, RECORD_KEYS)
            if missing:
                raise ValueError(f"{where}: the record lacks {missing}")
            for index, instance in enumerate(record["instances"]):
                _check_instance(f"{where}: instance {index}", instance)
            yield where, record


def _check_instance(where: str, instance: Any) -> None:
    missing = missing_keys(instance, INSTANCE_KEYS)
    if missing:
        raise ValueError(f"{where} lacks {missing}")
    score = instance["score"]
    if not isinstance(score, int | float) or not math.isfinite(score):
        raise ValueError(f"{where}: score {score!r} is not a finite number")
