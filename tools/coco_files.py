"""Read and write the files that the tools exchange: COCO json and prediction records (.jsonl).

Reading raises errors that name the file and the entry; writing goes to a temporary name that is
renamed at the end, so that a killed run never leaves half a file under the final name.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

IMAGE_KEYS = ("id", "file_name", "height", "width")
SECTIONS = ("images", "annotations", "categories")


def dumps(value: Any) -> str:
    """Compact json text of `value`: equal values give equal bytes."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


@contextmanager
def atomic_text(path: str | Path) -> Iterator[IO[str]]:
    """Open `path` for writing; the file appears under its name only when the block ends well."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "w", encoding="utf-8", newline="\n") as handle:
            yield handle
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as one compact json line, atomically."""
    with atomic_text(path) as handle:
        handle.write(dumps(value) + "\n")


class CocoWriter:
    """Write a COCO file annotation by annotation: only the header and one entry are in memory."""

    def __init__(self, handle: IO[str], header: dict[str, Any]):
        self._handle = handle
        self.num_annotations = 0
        fields = "".join(f"{dumps(k)}:{dumps(v)},\n" for k, v in header.items())
        handle.write("{" + fields + '"annotations":[')

    def add(self, annotation: dict[str, Any]) -> None:
        """Append one annotation under the next id of 1..N."""
        separator = ",\n" if self.num_annotations else "\n"
        self.num_annotations += 1
        self._handle.write(separator + dumps({**annotation, "id": self.num_annotations}))

    def close(self) -> None:
        """End the annotation list and the file's object."""
        self._handle.write("\n]}\n")


def read_coco(path: str | Path) -> dict[str, Any]:
    """Load a COCO instance file and check its frame: sections, unique ids, references.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not json, or a section, an image or an annotation is not as COCO defines it;
            the message names the file and the entry.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a COCO instance file (json)")
    try:
        data = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not a json file ({error})") from error
    missing = [s for s in SECTIONS if not isinstance(data, dict) or s not in data]
    if missing:
        raise ValueError(f"{path}: lacks {missing}; a COCO instance file has {list(SECTIONS)}")
    _check_images(path, data["images"])
    categories = _unique_ids(path, "category", data["categories"])
    images = {image["id"] for image in data["images"]}
    _unique_ids(path, "annotation", data["annotations"])
    for annotation in data["annotations"]:
        _check_references(path, annotation, images, categories)
    return data


def _check_images(path: Path, images: list[dict[str, Any]]) -> None:
    _unique_ids(path, "image", images)
    for image in images:
        missing = [key for key in IMAGE_KEYS if key not in image]
        if missing:
            raise ValueError(f"{path}: image id {image['id']} lacks {missing}")


def _unique_ids(path: Path, kind: str, entries: list[dict[str, Any]]) -> set[int]:
    seen: set[int] = set()
    for index, entry in enumerate(entries):
        if "id" not in entry:
            raise ValueError(f"{path}: {kind} number {index} (from 0) has no 'id'")
        if entry["id"] in seen:
            raise ValueError(f"{path}: {kind} id {entry['id']} occurs twice; ids must be unique")
        seen.add(entry["id"])
    return seen


def _check_references(
    path: Path, annotation: dict[str, Any], images: set[int], categories: set[int]
) -> None:
    where = f"{path}: annotation id {annotation['id']}"
    for key, allowed, kind in (
        ("image_id", images, "images"),
        ("category_id", categories, "categories"),
    ):
        if annotation.get(key) not in allowed:
            raise ValueError(
                f"{where}: {key} {annotation.get(key)!r} is not among the file's {kind}"
            )
