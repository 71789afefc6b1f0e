"""Turn points from an annotation tool into a weak file: COCO json with one point per instance.

Categories and their ids come from a COCO file or a list; without either they are the labels in
alphabetical order. Where it is a COCO file, ids of images and annotations go on after its largest
ones, so that the two can be merged.
"""

from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from weaklabels.coco import CocoFile
from weaklabels.image_root import image_path, is_file
from weaklabels.importers.formats import READERS, Findings, LabeledPoint
from weaklabels.pictures import image_size_hw


@dataclass(frozen=True)
class Base:
    """What the weak file builds on, all from the file of --categories where that is one.

    last_image_id, last_annotation_id: the largest taken.  masked: names of images with masks.
    """

    categories: list[dict[str, Any]]
    path: str = ""
    last_image_id: int = 0
    last_annotation_id: int = 0
    masked: frozenset[PurePath] = frozenset()


def read_base(text: str | None, labels: set[str]) -> Base:
    """From a COCO file, a comma-separated list of categories, or the labels that occur."""
    if not (text and text.endswith(".json")):
        names = text.split(",") if text else sorted(labels)
        return Base([{"id": i, "name": name.strip()} for i, name in enumerate(names, start=1)])
    coco = CocoFile(text)
    annotation_id, masked = 0, set()
    for annotation in coco.annotations():
        annotation_id = max(annotation_id, annotation["id"])
        if annotation.get("segmentation"):
            masked.add(PurePath(coco.images[annotation["image_id"]]["file_name"]))
    image_id = max(coco.images, default=0)
    return Base(coco.header["categories"], text, image_id, annotation_id, frozenset(masked))


class ImageTable:
    """The images below a folder, each with its COCO entry once a point names it."""

    def __init__(self, root: Path, base: Base):
        if not root.is_dir():
            raise FileNotFoundError(f"--image-root {root}: no such folder")
        self.root, self.base = root, base
        self.entries: dict[str, dict[str, Any]] = {}

    def find(self, point: LabeledPoint) -> dict[str, Any]:
        """The entry of the point's image.

        Raises:
            ValueError: no image of that name, one that has masks already or cannot be read, or
                its size is not the one that the export states.
        """
        for name in point.images:
            if name in self.entries or is_file(self.root / name):
                break
        else:
            raise ValueError(
                f"{point.where}: no image {' or '.join(map(repr, point.images))} in {self.root}"
            )
        if name not in self.entries:
            self.entries[name] = self._new_entry(name, point.where)
        entry = self.entries[name]
        size_hw = (entry["height"], entry["width"])
        if point.size_hw not in (None, size_hw):
            raise ValueError(
                f"{point.where}: states size {point.size_hw} (height, width), but "
                f"{self.root / name} is {size_hw}: was the image resized or rotated?"
            )
        if not (0 <= point.x < entry["width"] and 0 <= point.y < entry["height"]):
            raise ValueError(
                f"{point.where}: point ({point.x:g}, {point.y:g}) lies outside the image of "
                f"{entry['width']} x {entry['height']} pixels"
            )
        return entry

    def _new_entry(self, name: str, where: str) -> dict[str, Any]:
        if PurePath(name) in self.base.masked:
            raise ValueError(
                f"{where}: image {name!r} has masks in {self.base.path}, and an image has either "
                "masks or points: take its points out of the export, or its masks out of that file"
            )
        try:
            height, width = image_size_hw(image_path(self.root, name), where)
        except ValueError as error:
            named = str(error).startswith(where)
            raise ValueError(str(error) if named else f"{where}: {error}") from error
        number = self.base.last_image_id + len(self.entries) + 1
        return {"id": number, "file_name": name, "height": height, "width": width}


def import_points(
    points: list[LabeledPoint], image_root: Path, base: Base, findings: Findings
) -> dict[str, Any]:
    """Content of the weak file.

    Raises:
        ValueError: a point outside its image, an unknown category or an image that cannot be used,
            and `findings` do not skip these.
    """
    images = ImageTable(image_root, base)
    ids = {category["name"]: category["id"] for category in base.categories}
    annotations = []
    for point in points:
        with findings.record():
            if point.category not in ids:
                raise ValueError(
                    f"{point.where}: category {point.category!r} is not one of {sorted(ids)}"
                )
            image = images.find(point)
            annotations.append(
                {
                    "id": base.last_annotation_id + len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": ids[point.category],
                    "point": [round(point.x, 3), round(point.y, 3)],
                    "iscrowd": 0,
                }
            )
    content = {"images": list(images.entries.values()), "annotations": annotations}
    return content | {"categories": base.categories}


@dataclass(frozen=True)
class Import:
    """What came of an import: the weak file's content and what was met on the way."""

    content: dict[str, Any]
    findings: Findings


def import_file(
    path: Path,
    *,
    format: str,
    image_root: Path,
    categories: str | None = None,
    skip_invalid: bool = False,
) -> Import:
    """Read an export of an annotation tool.

    Args:
        path: the export, a file or, for some formats, a folder.
        format: one of `formats.READERS`.
        image_root: folder of the images.
        categories: a COCO .json whose categories and ids are taken over, or names as "a,b,c".
        skip_invalid: list bad points instead of stopping at the first.
    """
    if format not in READERS:
        raise ValueError(f"format {format!r}; expected one of {sorted(READERS)}")
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    findings = Findings(skip_invalid)
    points = list(READERS[format](path, findings))
    if not points:
        raise ValueError(
            f"{path}: holds no valid point; passed over: {dict(findings.passed_over)}, "
            f"skipped: {findings.skipped}"
        )
    base = read_base(categories, {point.category for point in points})
    return Import(import_points(points, image_root, base, findings), findings)
