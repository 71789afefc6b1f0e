"""Lists of the images from which a stage got nothing."""

from pathlib import Path
from typing import Any

from weaklabels.tags import skipped_path, write_json


def write_skipped(output: str | Path, entries: list[dict[str, Any]]) -> Path:
    """Write `NAME.skipped.json` beside a stage's output, an empty list where nothing is skipped."""
    path = skipped_path(output)
    write_json(path, entries)
    return path
