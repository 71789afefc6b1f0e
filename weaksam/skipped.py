"""Lists of the images from which a stage got nothing."""

from pathlib import Path
from typing import Any

from weaklabels.files import write_json
from weaklabels.tags import skipped_path


def write_skipped(output: str | Path, entries: list[dict[str, Any]]) -> Path:
    """Write `NAME.skipped.json` beside a stage's output, an empty list where nothing is skipped."""
    path = skipped_path(output)
    write_json(path, entries)
    return path
