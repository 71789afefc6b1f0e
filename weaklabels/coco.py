"""COCO annotation files: read and written annotation by annotation.

Memory holds the images and one annotation. Errors name the file and the entry.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from weaklabels.files import dumps, missing_keys, read_json
from weaklabels.image_root import check_image_name
from weaklabels.json_stream import walk_object
from weaklabels.masks import check_image_size, segmentation_rle

IMAGE_KEYS = ("id", "file_name", "height", "width")
CATEGORY_KEYS = ("id", "name")
ANNOTATIONS = "annotations"  # the section that is streamed
SECTIONS = ("images", ANNOTATIONS, "categories")


class InvalidAnnotation(ValueError):
    """An annotation cannot be used; the message names the file, its id and the reason."""


class CocoWriter:
    """Write a COCO file annotation by annotation: only the header and one entry are in memory.

    Args:
        source: what the header was read from, which errors name.
    """

    def __init__(self, handle: IO[str], header: dict[str, Any], source: str | Path):
        self._handle = handle
        self.count = 0
        handle.write("{")
        for name, value in header.items():
            try:
                handle.write(f"{dumps(name)}:{dumps(value)},\n")
            except ValueError as error:
                raise ValueError(f"{source}: section {name!r} holds {error}; correct it") from error
        handle.write('"annotations":[')

    def add(self, annotation: dict[str, Any], where: str = "it") -> None:
        """Append one annotation as it is; `where` begins the ValueError for one with NaN."""
        try:
            text = dumps(annotation)
        except ValueError as error:
            raise ValueError(f"{where} holds {error}; correct it") from error
        self._handle.write((",\n" if self.count else "\n") + text)
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
        check_sections(sections, path)
        del sections["annotations"]
        self.header = sections
        self.images = checked_images(sections["images"], path)
        self.category_ids = list(checked_categories(sections["categories"], path))

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
            raise InvalidAnnotation(f"{self.path}: {problem}; correct or remove it")
        self.skipped.append(problem)

    def _problem(self, entry: Any, seen: set[int], categories: set[int]) -> str | None:
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), int):
            return f"annotation {json.dumps(entry)[:80]}: no integer 'id'"
        name = f"annotation id {entry['id']}"
        if entry["id"] in seen:
            return f"{name}: occurs twice; ids must be unique"
        image_id, category_id = entry.get("image_id"), entry.get("category_id")
        if not isinstance(image_id, int) or image_id not in self.images:
            return f"{name}: image_id {image_id!r} is not among the file's images"
        if not isinstance(category_id, int) or category_id not in categories:
            return f"{name}: category_id {category_id!r} is not among the file's categories"
        return None


def read_whole(path: str | Path) -> dict[str, Any]:
    """The content of a COCO file, all of it in memory; only its sections are checked.

    `annotations` and `categories` may be absent, as in files of test images.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no JSON object with the sections of a COCO file, each of them once.
    """
    path = Path(path)
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not a COCO annotation file but a list or a value: give another")
    check_sections({"annotations": [], "categories": [], **content}, path)
    text = path.read_bytes()
    if any(text.count(f'"{name}"'.encode()) > 1 for name in SECTIONS):
        for _ in walk_object(path, ANNOTATIONS):  # a section that occurs twice is an error in it
            pass
    return content


def category_names(path: str | Path) -> list[str]:
    """Names of a COCO file's categories, in the order of their ids; errors as `CocoFile`'s."""
    categories = checked_categories(read_whole(path).get("categories", []), path)
    return [categories[number]["name"] for number in sorted(categories)]


def check_sections(content: dict[str, Any], path: str | Path) -> None:
    """Refuse a file without the lists of a COCO file, as ValueError."""
    for name in SECTIONS:
        if not isinstance(content.get(name), list):
            raise ValueError(
                f"{path}: no list {name!r}: add it, [] where it is empty, or give a COCO instance "
                "file"
            )


def checked_images(entries: list[Any], path: str | Path) -> dict[int, dict[str, Any]]:
    """Images by id, in the file's order; ValueError for one that cannot be."""
    images = by_id("image", entries, IMAGE_KEYS, path)
    for image in images.values():
        where = f"{path}: image id {image['id']}"
        if not isinstance(image["file_name"], str) or not image["file_name"]:
            raise ValueError(f"{where}: file_name {image['file_name']!r} is not a name; correct it")
        try:
            check_image_name(image["file_name"])
            check_image_size(image["height"], image["width"])
        except ValueError as error:
            raise ValueError(f"{where}: {error}; correct the file") from error
    return images


def checked_categories(entries: list[Any], path: str | Path) -> dict[int, dict[str, Any]]:
    """Categories by id, in the file's order; ValueError for one that cannot be."""
    categories = by_id("category", entries, CATEGORY_KEYS, path)
    for category in categories.values():
        if not isinstance(category["name"], str):
            raise ValueError(
                f"{path}: category id {category['id']}: name {category['name']!r} is not a text; "
                "correct it"
            )
    return categories


def by_id(
    kind: str, entries: Any, keys: tuple[str, ...], path: str | Path
) -> dict[int, dict[str, Any]]:
    """Entries of a section by their `id`, each once and with all `keys`; ValueError else."""
    if not isinstance(entries, list):
        raise ValueError(f"{path}: the section of each {kind} is no list; correct it")
    found: dict[int, dict[str, Any]] = {}
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict) or type(entry.get("id")) is not int:
            raise ValueError(f"{path}: {kind} number {index} has no integer 'id'; correct it")
        missing = missing_keys(entry, keys)
        if missing:
            raise ValueError(f"{path}: {kind} id {entry['id']} lacks {missing}; add it")
        if entry["id"] in found:
            raise ValueError(f"{path}: {kind} id {entry['id']} occurs twice; number them anew")
        found[entry["id"]] = entry
    return found


@dataclass(frozen=True)
class ImageInfo:
    """One image of an annotation file; `file_name` is relative to the image root."""

    image_id: int
    file_name: str
    height: int
    width: int


@dataclass(frozen=True)
class Annotations:
    """A whole COCO annotation file in memory, by image.

    categories: `id` and `name`, ids ascending; a class index is a place in this tuple.
    images: by image id, in the file's order.
    instances: by image id, the raw annotations in the file's order; every image has a list.
    """

    path: Path
    categories: tuple[dict[str, Any], ...]
    images: dict[int, ImageInfo]
    instances: dict[int, list[dict[str, Any]]]

    @property
    def category_ids(self) -> tuple[int, ...]:
        """Dataset ids in class order."""
        return tuple(category["id"] for category in self.categories)

    def mask_rle(self, annotation: dict[str, Any], use: str) -> dict[str, Any]:
        """Compressed RLE (`counts` bytes) of an annotation's mask.

        Raises:
            ValueError: naming file and annotation, where it has no mask, which `use` needs, or
                none that can be read.
        """
        where = f"{self.path}: annotation id {annotation.get('id')}"
        if not annotation.get("segmentation"):
            raise ValueError(f"{where} has no mask; {use} needs masks, give a file that has them")
        image = self.images[annotation["image_id"]]
        try:
            return segmentation_rle(annotation["segmentation"], image.height, image.width)
        except ValueError as error:
            raise ValueError(f"{where}: {error}; correct or remove it") from error


def load_annotations(path: str | Path) -> Annotations:
    """Read a COCO annotation file into memory; errors as those of `CocoFile`."""
    file = CocoFile(path)
    images = {
        image_id: ImageInfo(image_id, image["file_name"], image["height"], image["width"])
        for image_id, image in file.images.items()
    }
    instances: dict[int, list[dict[str, Any]]] = {image_id: [] for image_id in images}
    for annotation in file.annotations():
        instances[annotation["image_id"]].append(annotation)
    categories = sorted(file.header["categories"], key=lambda category: category["id"])
    slim = tuple({"id": c["id"], "name": c["name"]} for c in categories)
    return Annotations(file.path, slim, images, instances)
