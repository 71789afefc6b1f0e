"""Prediction records: one JSON object an image, the format that all stages share.

`{"image_id", "file_name", "height", "width", "instances": [{"category_id", "score", "bbox",
"area", "point", "segmentation"}]}`: dataset category ids, pixels of the image, points (x, y).
Written as JSON lines; read also from COCO result lists and from lists of images with contiguous
class indices, as Detectron2 pickles them (`instances_predictions.pth`).
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pycocotools import mask as mask_api

from .annotations import Annotations, ImageInfo, decode_mask, read_json, to_rle
from .checkpoint import read_torch_file
from .crops import centre_of_mass

POINT_UNIT = 10_000  # the reference stores points as (y, x) in 1/10000 of the image size
RECORD_KEYS = ("image_id", "file_name", "height", "width", "instances")

Record = dict[str, Any]


def read_records(path: str | Path, annotations: Annotations | None = None) -> Iterator[Record]:
    """Yield the records of a prediction file, one image at a time.

    Args:
        path: `.jsonl` (streamed), `.json` (COCO results, or a list of images with instances) or
            `.pth` (the latter, pickled).
        annotations: tells `.json` and `.pth` the images' names and sizes and the category ids;
            `.jsonl` files hold all that themselves.

    Raises:
        ValueError: naming the file and the record, where one of them is unusable.
    """
    suffix = Path(path).suffix
    if suffix == ".jsonl":
        yield from _read_lines(path)
        return
    if suffix not in (".json", ".pth"):
        raise ValueError(f"{path}: expected a .jsonl, .json or .pth file of predictions")
    if annotations is None:
        raise ValueError(f"{path}: {suffix} predictions need an annotation file with the images")
    content = read_json(path) if suffix == ".json" else read_torch_file(path)
    if not isinstance(content, list):
        raise ValueError(f"{path}: expected a list, got a {type(content).__name__}")
    nested = any("instances" in item for item in content)
    images = content if nested else _group_results(content)
    category_ids = annotations.category_ids if nested else None
    for item in images:
        if not item.get("instances") and item.get("image_id") not in annotations.images:
            continue  # detectors also list images without a detection; this one is not of the set
        try:
            yield _complete(item, annotations, category_ids)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ValueError(f"{path}: image {item.get('image_id')!r}: {error}") from error


def _read_lines(path: str | Path) -> Iterator[Record]:
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            yield parse_line(line, f"{path}, line {number}")


def parse_line(line: str, where: str) -> Record:
    """One record of a `.jsonl` file, checked; `where` names the file and line in errors."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not a JSON object ({error})") from error
    missing = [key for key in RECORD_KEYS if not isinstance(record, dict) or key not in record]
    if missing:
        raise ValueError(f"{where}: the record has no {', '.join(missing)}")
    for number, instance in enumerate(record["instances"]):
        absent = [key for key in ("category_id", "segmentation") if key not in instance]
        if absent:
            raise ValueError(f"{where}: instance {number} has no {', '.join(absent)}")
        try:
            rle = to_rle(instance["segmentation"], record["height"], record["width"])
            if rle is not instance["segmentation"]:
                instance.update(mask_fields(rle))
            if "point" not in instance:
                instance["point"] = _mask_point(rle)
            _check_point(instance["point"])
        except ValueError as error:
            raise ValueError(f"{where}: instance {number}: {error}") from error
    return record


def _check_point(point: Any) -> None:
    numbers = isinstance(point, list) and all(
        isinstance(value, int | float) and math.isfinite(value) for value in point
    )
    if not numbers or len(point) != 2:
        raise ValueError(f"point={point!r}; expected [x, y], two finite numbers, in pixels")


def _group_results(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A flat COCO result list by image, in the order in which the images first appear."""
    images: dict[int, dict[str, Any]] = {}
    for result in results:
        image_id = result["image_id"]
        images.setdefault(image_id, {"image_id": image_id, "instances": []})
        images[image_id]["instances"].append(result)
    return list(images.values())


def _complete(
    item: dict[str, Any], annotations: Annotations, category_ids: tuple[int, ...] | None
) -> Record:
    """A record from an image's COCO results; `category_ids` where classes are contiguous."""
    if item["image_id"] not in annotations.images:
        raise ValueError(f"is not among the images of {annotations.path}")
    info = annotations.images[item["image_id"]]
    instances = []
    for result in item["instances"]:
        category = result["category_id"]
        if category_ids is not None:
            if not 0 <= category < len(category_ids):
                raise ValueError(f"class {category}; {annotations.path} has {len(category_ids)}")
            category = category_ids[category]
        rle = to_rle(result["segmentation"], info.height, info.width)
        instances.append(
            {
                "category_id": category,
                "score": float(result.get("score", 1.0)),
                "point": _result_point(result, rle, info),
                **mask_fields(rle),
            }
        )
    return {
        "image_id": info.image_id,
        "file_name": info.file_name,
        "height": info.height,
        "width": info.width,
        "instances": instances,
    }


def mask_fields(rle: dict[str, Any]) -> dict[str, Any]:
    """The fields of an instance that follow from its mask: bbox, area, segmentation."""
    counts = rle["counts"]
    return {
        "bbox": [float(value) for value in mask_api.toBbox(rle)],
        "area": int(mask_api.area(rle)),
        "segmentation": {
            "size": [int(n) for n in rle["size"]],
            "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts,
        },
    }


def _result_point(result: dict[str, Any], rle: dict[str, Any], info: ImageInfo) -> list[float]:
    """The labelled point: stored as such, encoded in the box, or else the mask's centre."""
    if "point" in result:
        _check_point(result["point"])
        return [float(value) for value in result["point"]]
    y, x, height, width = result.get("bbox", (0, 0, 1, 1))
    # An encoded (y, x, 0, 0) box went through a conversion from corners to sizes. Where the
    # reference lost a point it left (0, 0), which therefore says nothing.
    if height == -y and width == -x and (x, y) != (0, 0):
        return [x * info.width / POINT_UNIT, y * info.height / POINT_UNIT]
    return _mask_point(rle)


def _mask_point(rle: dict[str, Any]) -> list[float]:
    height, width = rle["size"]
    centre = centre_of_mass(decode_mask(rle, height, width))
    return list(centre) if centre is not None else [width / 2, height / 2]


def write_line(record: Record) -> str:
    """A record as one line of a `.jsonl` file."""
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n"
