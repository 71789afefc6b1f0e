"""Read a COCO annotation file: categories, images, and instances with their masks."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as mask_api

from weaklabels.masks import run_lengths

MIN_POLYGON_NUMBERS = 6  # x and y of three corners


@dataclass(frozen=True)
class ImageInfo:
    """One image of an annotation file; `file_name` is relative to the image root."""

    image_id: int
    file_name: str
    height: int
    width: int


@dataclass(frozen=True)
class Annotations:
    """A COCO annotation file.

    category_ids: dataset ids in increasing order; a class index is a place in this tuple.
    images: by image id, in the file's order.
    instances: by image id, the raw annotations in the file's order; every image has a list.
    """

    path: Path
    categories: tuple[dict[str, Any], ...]
    images: dict[int, ImageInfo]
    instances: dict[int, list[dict[str, Any]]]

    @property
    def category_ids(self) -> tuple[int, ...]:
        return tuple(category["id"] for category in self.categories)


def read_json(path: str | Path) -> Any:
    """The content of a JSON file; ValueError names the file where it is none."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a JSON file ({error})") from error


def load_annotations(path: str | Path) -> Annotations:
    """Read a COCO annotation file, with errors that name the file and the record."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a COCO object, got a {type(content).__name__}")
    missing = {"images", "categories"} - content.keys()
    if missing:
        raise ValueError(f"{path}: a COCO file needs the keys {sorted(missing)}")
    images: dict[int, ImageInfo] = {}
    for image in _rows(content, "images", ("id", "file_name", "height", "width"), path):
        images[image["id"]] = ImageInfo(*map(image.get, ("id", "file_name", "height", "width")))
    instances: dict[int, list[dict[str, Any]]] = {image_id: [] for image_id in images}
    for annotation in _rows(content, "annotations", (), path):
        image_id = annotation.get("image_id")
        if image_id not in images:
            raise ValueError(
                f"{path}: annotation {annotation.get('id')} is of image {image_id!r}, which is not"
                " in the list of images: add the image or remove the annotation"
            )
        instances[image_id].append(annotation)
    categories = sorted(_rows(content, "categories", ("id",), path), key=lambda row: row["id"])
    slim = tuple({"id": c["id"], "name": c.get("name", str(c["id"]))} for c in categories)
    return Annotations(Path(path), slim, images, instances)


def _rows(
    content: dict[str, Any], name: str, keys: tuple[str, ...], path: str | Path
) -> list[dict[str, Any]]:
    """A list of a COCO file, checked: objects that have the keys, and no id twice."""
    rows, seen = content.get(name, []), set()
    if not isinstance(rows, list):
        raise ValueError(
            f"{path}: {name} is no list but {type(rows).__name__}; where there are none, write []"
        )
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            kind = type(row).__name__
            raise ValueError(
                f"{path}: entry {number} of {name} is no object but {kind}; correct or remove it"
            )
        for key in keys:
            if key not in row:
                raise ValueError(f"{path}: entry {number} of {name} has no {key!r}; add it")
        if "id" in row and row["id"] in seen:
            raise ValueError(f"{path}: {name} has the id {row['id']} twice; give each its own")
        seen.add(row.get("id"))
    return rows


def mask_rle(
    annotations: Annotations, annotation: dict[str, Any], image: ImageInfo, use: str
) -> dict[str, Any]:
    """Compressed RLE of an annotation's mask.

    Raises:
        ValueError: naming file and annotation, where it has no mask, which `use` needs, or none
            that can be read.
    """
    where = f"{annotations.path}: annotation {annotation.get('id')}"
    if not annotation.get("segmentation"):
        raise ValueError(f"{where} has no mask; {use} needs masks, give a file that has them")
    try:
        return to_rle(annotation["segmentation"], image.height, image.width)
    except ValueError as error:
        raise ValueError(f"{where}: {error}; correct or remove it") from error


def to_rle(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """Compressed RLE of polygons, uncompressed RLE or compressed RLE (`counts` str or bytes).

    Polygons of fewer than three corners are left out, as the teacher's loader does.
    """
    if isinstance(segmentation, list):
        polygons = [
            polygon
            for polygon in segmentation
            if isinstance(polygon, list)
            and len(polygon) >= MIN_POLYGON_NUMBERS
            and len(polygon) % 2 == 0
        ]
        if not polygons:
            raise ValueError("segmentation: no polygon of at least three corners")
        return mask_api.merge(mask_api.frPyObjects(polygons, height, width))
    if not isinstance(segmentation, dict) or {"size", "counts"} - segmentation.keys():
        raise ValueError("segmentation: expected polygons or an RLE object with size and counts")
    if list(segmentation["size"]) != [height, width]:
        raise ValueError(
            f"segmentation has size {list(segmentation['size'])}, its image {[height, width]}"
        )
    counts = segmentation["counts"]
    runs = np.asarray(counts) if isinstance(counts, list) else run_lengths(counts)
    if runs.dtype.kind not in "iu" or (runs < 0).any() or runs.sum() != height * width:
        # pycocotools gives whatever lies in memory for pixels without a run.
        raise ValueError(f"segmentation: counts are not runs that add up to {height} x {width}")
    if isinstance(counts, list):
        return mask_api.frPyObjects(segmentation, height, width)
    return segmentation


def decode_mask(segmentation: Any, height: int, width: int) -> np.ndarray:
    """(H, W) uint8 mask, 0 or 1, of a segmentation in any COCO form."""
    return mask_api.decode(to_rle(segmentation, height, width))


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """Compressed RLE of an (H, W) mask, `counts` as str."""
    rle = mask_api.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(n) for n in rle["size"]], "counts": rle["counts"].decode("ascii")}
