"""Image-level labels: which classes an image shows, and nothing about where.

`tags.json` is COCO JSON without `annotations`: each image has `category_ids` beside COCO's keys,
in ascending order. A file with annotations is refused, so that no box or mask can reach a stage
that learns from tags.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# These move to weaklabels.files; until then they are where the tools have them.
from weaklabels.coco import CATEGORY_KEYS, IMAGE_KEYS
from weaklabels.files import missing_keys, read_json, write_json

EVALUATION_WORDS = {"test", "val", "minival", "dev"}


@dataclass(frozen=True)
class TaggedImage:
    """One image: `file_name` is below the image folder, `category_ids` ascend, maybe none."""

    id: int
    file_name: str
    height: int
    width: int
    category_ids: tuple[int, ...]


@dataclass(frozen=True)
class Tags:
    """The content of a tag file.

    categories: (id, name) in ascending order of ids.
    split: name of the images' split, such as "trainval"; None where the source has none.
    difficult: whether a class counts of which an image has difficult objects (crowds) only.
    source: what the tags were read from, for people.
    """

    images: tuple[TaggedImage, ...]
    categories: tuple[tuple[int, str], ...]
    split: str | None = None
    difficult: bool = False
    source: str = ""
    file: str = field(default="", compare=False)  # read from here: named in errors

    def __post_init__(self) -> None:
        where = f"{self.file}: " if self.file else ""
        ids = [number for number, _ in self.categories]
        if not ids:
            raise ValueError(f"{where}no categories; image tags need a class list")
        for what, values in (("id", ids), ("name", [name for _, name in self.categories])):
            if twice := _first_repeated(values):
                raise ValueError(f"{where}category {what} {twice[0]!r} occurs twice; remove one")
        if ids != sorted(ids):
            raise ValueError(f"{where}categories are not in ascending order of their ids")
        for what in ("id", "file_name"):
            if twice := _first_repeated([getattr(image, what) for image in self.images]):
                raise ValueError(f"{where}image {what} {twice[0]!r} occurs twice; remove one")
        known = set(ids)
        for image in self.images:
            if unknown := sorted(set(image.category_ids) - known):
                raise ValueError(
                    f"{where}image id {image.id} has the category_ids {unknown}, which are not "
                    "among the categories: add them there or correct the image"
                )
            if list(image.category_ids) != sorted(set(image.category_ids)):
                raise ValueError(
                    f"{where}image id {image.id}: category_ids {list(image.category_ids)} must "
                    "ascend without repetition"
                )

    @property
    def class_names(self) -> list[str]:
        """Names in the order of contiguous ids."""
        return [name for _, name in self.categories]

    @property
    def index_of(self) -> dict[int, int]:
        """Contiguous id, from 0, of each category id."""
        return {number: index for index, (number, _) in enumerate(self.categories)}

    @property
    def for_evaluation(self) -> bool:
        """Whether the split is one that figures are reported on, such as test and val."""
        return is_evaluation_split(self.split)

    def without_tags(self) -> list[TaggedImage]:
        """The images that show none of the classes."""
        return [image for image in self.images if not image.category_ids]

    def absent_classes(self) -> list[str]:
        """Names of the classes that no image shows."""
        shown = Counter(number for image in self.images for number in image.category_ids)
        return [name for number, name in self.categories if not shown[number]]


def is_evaluation_split(split: str | None) -> bool:
    """Whether a split's name says that figures are reported on it: test, val2014, minival, ..."""
    return bool(split) and bool(EVALUATION_WORDS & set(re.findall("[a-z]+", split.lower())))


def require_every_class(tags: Tags) -> None:
    """ValueError that names the classes of which there is no image to learn from."""
    absent = tags.absent_classes()
    if absent:
        raise ValueError(
            f"{tags.file or tags.source}: no image of the split is tagged {', '.join(absent)}; "
            "take these out of the class list, or allow absent classes if nothing is trained on it"
        )


def write_tags(path: str | Path, tags: Tags) -> Path:
    """Write `path` and, beside it, the list of images without a tag; returns that list's path."""
    path = Path(path)
    content = {
        "info": {"source": tags.source, "split": tags.split, "difficult": tags.difficult},
        "images": [_image_json(image) for image in tags.images],
        "categories": [{"id": number, "name": name} for number, name in tags.categories],
    }
    untagged = [
        {"image_id": image.id, "file_name": image.file_name, "reason": "no tag"}
        for image in tags.without_tags()
    ]
    skipped = skipped_path(path)
    write_json(skipped, untagged)
    write_json(path, content)
    return skipped


def skipped_path(path: str | Path) -> Path:
    """Where the images that a stage skipped are listed: `NAME.skipped.json` beside its output."""
    return Path(path).with_suffix(".skipped.json")


def read_tags(path: str | Path) -> Tags:
    """Read and check a tag file; errors name the file and the entry."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; expected image tags, as written from a dataset"
        )
    content = read_json(path)
    if not isinstance(content, dict) or missing_keys(content, ("images", "categories")):
        raise ValueError(f"{path}: no tag file, which needs the lists 'images', 'categories'")
    if "annotations" in content:
        raise ValueError(
            f"{path} has 'annotations', so it is no tag file: boxes and masks must not reach what "
            "learns from tags. Make one from it"
        )
    info = content.get("info", {})
    if not isinstance(info, dict):
        raise ValueError(f"{path}: 'info' is {info!r}; expected an object")
    return Tags(
        images=tuple(_read_image(path, entry, n) for n, entry in _entries(path, content, "images")),
        categories=tuple(sorted(_read_categories(path, content))),
        split=info.get("split"),
        difficult=bool(info.get("difficult", False)),
        source=str(info.get("source", "")),
        file=str(path),
    )


def _image_json(image: TaggedImage) -> dict[str, Any]:
    keys = ("id", "file_name", "height", "width")
    return {key: getattr(image, key) for key in keys} | {"category_ids": list(image.category_ids)}


def _entries(path: Path, content: dict[str, Any], section: str) -> Iterable[tuple[int, Any]]:
    if not isinstance(content[section], list):
        raise ValueError(f"{path}: {section!r} is no list")
    return enumerate(content[section])


def _read_categories(path: Path, content: dict[str, Any]) -> list[tuple[int, str]]:
    found = []
    for number, entry in _entries(path, content, "categories"):
        if missing := missing_keys(entry, CATEGORY_KEYS):
            raise ValueError(f"{path}: category number {number} lacks {missing}")
        if type(entry["id"]) is not int or not isinstance(entry["name"], str):
            raise ValueError(f"{path}: category number {number} needs an integer id and a name")
        found.append((entry["id"], entry["name"]))
    return found


def _read_image(path: Path, entry: Any, number: int) -> TaggedImage:
    if missing := missing_keys(entry, (*IMAGE_KEYS, "category_ids")):
        raise ValueError(f"{path}: image number {number} lacks {missing}")
    where = f"{path}: image id {entry['id']!r}"
    for key in ("id", "height", "width"):
        if type(entry[key]) is not int or (key != "id" and entry[key] < 1):
            raise ValueError(f"{where}: {key} is {entry[key]!r}; expected a whole number")
    ids = entry["category_ids"]
    if not isinstance(ids, list) or any(type(value) is not int for value in ids):
        raise ValueError(f"{where}: category_ids is {ids!r}; expected a list of category ids")
    if not isinstance(entry["file_name"], str) or not entry["file_name"]:
        raise ValueError(f"{where}: file_name is {entry['file_name']!r}; expected a path")
    values = (entry[key] for key in ("id", "file_name", "height", "width"))
    return TaggedImage(*values, category_ids=tuple(ids))


def _first_repeated(values: list[Any]) -> list[Any]:
    """The first value that occurs a second time, as a list of one; empty if none does."""
    seen: set[Any] = set()
    for value in values:
        if value in seen:
            return [value]
        seen.add(value)
    return []
