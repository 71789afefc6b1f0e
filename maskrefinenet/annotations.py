"""Read a COCO annotation file: categories, images, and instances with their masks."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as mask_api


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
    for number, image in enumerate(content["images"]):
        try:
            info = ImageInfo(image["id"], image["file_name"], image["height"], image["width"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path}: image {number} has no {error}") from error
        images[info.image_id] = info
    instances: dict[int, list[dict[str, Any]]] = {image_id: [] for image_id in images}
    for annotation in content.get("annotations", []):
        image_id = annotation.get("image_id")
        if image_id not in images:
            raise ValueError(
                f"{path}: annotation {annotation.get('id')} is of image {image_id!r}, which is not"
                " in the list of images"
            )
        instances[image_id].append(annotation)
    categories = sorted(content["categories"], key=lambda category: category["id"])
    slim = tuple({"id": c["id"], "name": c.get("name", str(c["id"]))} for c in categories)
    return Annotations(Path(path), slim, images, instances)


def to_rle(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """Compressed RLE of polygons, uncompressed RLE or compressed RLE (`counts` str or bytes)."""
    if isinstance(segmentation, list):
        parts = mask_api.frPyObjects(segmentation, height, width)
        return mask_api.merge(parts)
    if not isinstance(segmentation, dict) or {"size", "counts"} - segmentation.keys():
        raise ValueError("segmentation: expected polygons or an RLE object with size and counts")
    if list(segmentation["size"]) != [height, width]:
        raise ValueError(
            f"segmentation has size {list(segmentation['size'])}, its image {[height, width]}"
        )
    if isinstance(segmentation["counts"], list):
        return mask_api.frPyObjects(segmentation, height, width)
    return segmentation


def decode_mask(segmentation: Any, height: int, width: int) -> np.ndarray:
    """(H, W) uint8 mask, 0 or 1, of a segmentation in any COCO form."""
    return mask_api.decode(to_rle(segmentation, height, width))


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """Compressed RLE of an (H, W) mask, `counts` as str."""
    rle = mask_api.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(n) for n in rle["size"]], "counts": rle["counts"].decode("ascii")}
