"""COCO annotation files: read and written annotation by annotation.

Memory holds the images and one annotation. Errors name the file and the entry.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from weaklabels.files import dumps, missing_keys
from weaklabels.json_stream import walk_object

IMAGE_KEYS = ("id", "file_name", "height", "width")
CATEGORY_KEYS = ("id", "name")
ANNOTATIONS = "annotations"  # the section that is streamed


class InvalidAnnotation(ValueError):
    """An annotation cannot be used; the message names the file, its id and the reason."""


class CocoWriter:
    """Write a COCO file annotation by annotation: only the header and one entry are in memory."""

    def __init__(self, handle: IO[str], header: dict[str, Any]):
        self._handle = handle
        self.count = 0
        handle.write("{" + "".join(f"{dumps(k)}:{dumps(v)},\n" for k, v in header.items()))
        handle.write('"annotations":[')

    def add(self, annotation: dict[str, Any]) -> None:
        """Append one annotation as it is."""
        self._handle.write((",\n" if self.count else "\n") + dumps(annotation))
        self.count += 1

    def close(self) -> None:
        """End the annotation list and the file's object."""
        self._handle.write("\n]}\n")


class CocoFile:
    """A COCO instance file: everything but the annotations in memory, those one at a time.

    header: the file's sections without `annotations`.  images: by id, in the file's order.
    category_ids: in the file's order.  skipped: reasons, one for each entry left out.

    Args:
        skip_invalid: leave out and list annotations with a duplicate id or an unknown image or
            category, where False raises InvalidAnnotation for the first of them.
    """

    def __init__(self, path: str | Path, skip_invalid: bool = False):
        self.path = Path(path)
        self.skip_invalid = skip_invalid
        self.skipped: list[str] = []
        if not self.path.is_file():
            raise FileNotFoundError(f"{path}: no such file; expected a COCO instance file (json)")
        sections = {
            name: value
            for name, value, is_entry in walk_object(self.path, ANNOTATIONS)
            if not is_entry
        }
        for name in ("images", "annotations", "categories"):
            if not isinstance(sections.get(name), list):
                raise ValueError(f"{path}: no list {name!r}; a COCO instance file has one")
        del sections["annotations"]
        self.header = sections
        self.images = self._by_id("image", sections["images"])
        self.category_ids = list(self._by_id("category", sections["categories"]))
        required = (("image", "images", IMAGE_KEYS), ("category", "categories", CATEGORY_KEYS))
        for kind, section, keys in required:
            for entry in sections[section]:
                missing = missing_keys(entry, keys)
                if missing:
                    raise ValueError(f"{path}: {kind} id {entry['id']} lacks {missing}")

    def annotations(self) -> Iterator[dict[str, Any]]:
        """Valid annotations in the file's order; each call reads the file again."""
        self.skipped = []
        seen: set[int] = set()
        categories = set(self.category_ids)
        for _, annotation, is_entry in walk_object(self.path, ANNOTATIONS):
            if is_entry:
                problem = self._problem(annotation, seen, categories)
                if problem is None:
                    seen.add(annotation["id"])
                    yield annotation
                else:
                    self.reject(problem)

    def reject(self, problem: str) -> None:
        """List `problem` where invalid entries are skipped, otherwise raise InvalidAnnotation."""
        if not self.skip_invalid:
            raise InvalidAnnotation(f"{self.path}: {problem}")
        self.skipped.append(problem)

    def _problem(self, entry: Any, seen: set[int], categories: set[int]) -> str | None:
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), int):
            return f"annotation {dumps(entry)[:80]}: no integer 'id'"
        name = f"annotation id {entry['id']}"
        if entry["id"] in seen:
            return f"{name}: occurs twice; ids must be unique"
        image_id, category_id = entry.get("image_id"), entry.get("category_id")
        if not isinstance(image_id, int) or image_id not in self.images:
            return f"{name}: image_id {image_id!r} is not among the file's images"
        if not isinstance(category_id, int) or category_id not in categories:
            return f"{name}: category_id {category_id!r} is not among the file's categories"
        return None

    def _by_id(self, kind: str, entries: list[Any]) -> dict[int, dict[str, Any]]:
        found: dict[int, dict[str, Any]] = {}
        for index, entry in enumerate(entries):
            if not isinstance(entry, dict) or not isinstance(entry.get("id"), int):
                raise ValueError(f"{self.path}: {kind} number {index} has no integer 'id'")
            if entry["id"] in found:
                raise ValueError(f"{self.path}: {kind} id {entry['id']} occurs twice")
            found[entry["id"]] = entry
        return found
