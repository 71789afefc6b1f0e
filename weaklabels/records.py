"""Prediction records, the format that all stages share: one JSON object per image and line.

`{"image_id", "file_name", "height", "width", "instances": [{"category_id", "score", "bbox",
"area", "point", "segmentation"}]}`: category ids of the dataset, pixels of the original image,
points (x, y), boxes [x, y, width, height]. Of an instance, `category_id`, `score` and
`segmentation` are required. Also read: COCO result lists, lists of images with contiguous class
indices, as Detectron2 writes them, and COCO files with masks.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils

from weaklabels.coco import Annotations, ImageInfo, load_annotations
from weaklabels.files import missing_keys, read_json
from weaklabels.image_root import check_image_name
from weaklabels.masks import (
    Runs,
    check_image_size,
    check_segmentation,
    is_finite_number,
    mask_fields,
    segmentation_rle,
)
from weaklabels.points import finite_point

RECORD_KEYS = ("image_id", "file_name", "height", "width", "instances")
INSTANCE_KEYS = ("category_id", "score", "segmentation")
REMEDY = "correct it, or make the file again"  # what mends a record
POINT_UNIT = 10_000  # the reference stores points as (y, x) in 1/10000 of the image size

Record = dict[str, Any]
Located = tuple[str, Record]  # where a record stands, for messages, and the record


def read_records(path: str | Path, annotations: Annotations | None = None) -> Iterator[Located]:
    """Yield (where, record) of a prediction file, one image at a time, each record checked.

    Args:
        path: `.jsonl` (streamed), or `.json` (COCO results, a list of images with instances, or a
            COCO file with masks, which needs no other).
        annotations: tells `.json` files the images' names and sizes and the category ids;
            `.jsonl` files hold all that themselves.

    Raises:
        ValueError: a record cannot be used, or an image has two; naming the file and the record.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected prediction records (.jsonl)")
    if path.suffix == ".json":
        content = read_json(path)
        if isinstance(content, dict) and "annotations" in content:
            del content  # it is read again, annotation by annotation
            yield from label_records(path)
        else:
            yield from result_records(content, path, annotations)
    else:
        if not path.stat().st_size:
            raise ValueError(f"{path}: is empty: run what writes it to its end, or give another")
        yield from _unique(_read_lines(path))


def result_records(
    content: Any, path: str | Path, annotations: Annotations | None
) -> Iterator[Located]:
    """(where, record) of a loaded list of COCO results, or of images with contiguous classes.

    The second is what the reference pickles as `instances_predictions.pth`: it keeps the labeled
    point as (y, x) in 1/10000 of the image in `bbox`.
    """
    if annotations is None:
        raise ValueError(
            f"{path}: these predictions need an annotation file that names their images; give one "
            "with --annotations"
        )
    if not isinstance(content, list) or not all(isinstance(item, dict) for item in content):
        raise ValueError(f"{path}: expected a list of results or images; is it another file?")
    nested = any("instances" in item for item in content)
    category_ids = annotations.category_ids if nested else None

    def records() -> Iterator[Located]:
        for item in content if nested else _group_results(content, path):
            image_id = item.get("image_id")
            known = type(image_id) is int and image_id in annotations.images
            if not item.get("instances") and not known:
                continue  # detectors also list images without a detection; this one is not ours
            where = f"{path}: image {image_id!r}"
            try:
                yield where, _complete(item, annotations, category_ids)
            except (KeyError, TypeError, ValueError, IndexError) as error:
                raise ValueError(f"{where}: {_reason(error)}; {REMEDY}") from error

    yield from _unique(records())


def label_records(path: Path) -> Iterator[Located]:
    """(where, record) of each image of a COCO file with masks; crowds are left out.

    An annotation without `score` has 1, one without `point` its mask's center of mass.
    """
    labels = load_annotations(path)
    for image in labels.images.values():
        instances = []
        for annotation in labels.instances[image.image_id]:
            if annotation.get("iscrowd"):
                continue
            rle = labels.mask_rle(annotation, "a record")
            point = annotation.get("point") or rle_point(rle)
            instance = {"category_id": annotation["category_id"], "point": list(point)}
            instance["score"] = annotation.get("score", 1.0)
            instances.append(instance | mask_fields(rle))
        record = {key: getattr(image, key) for key in RECORD_KEYS[:-1]} | {"instances": instances}
        where = f"{path}: image {image.image_id}"
        check_record(where, record)
        yield where, record


def check_record(where: str, record: Any) -> None:
    """Refuse what is not a whole record; `where` begins the message of the ValueError."""
    missing = missing_keys(record, RECORD_KEYS)
    if missing:
        raise ValueError(f"{where}: the record lacks {missing}; {REMEDY}")
    try:
        if type(record["image_id"]) is not int:
            raise ValueError(f"image_id {record['image_id']!r} is not a whole number")
        if not isinstance(record["file_name"], str):
            raise ValueError(f"file_name {record['file_name']!r} is not a name")
        check_image_name(record["file_name"])
        check_image_size(record["height"], record["width"])
        if not isinstance(record["instances"], list):
            raise ValueError("instances are not a list")
    except ValueError as error:
        raise ValueError(f"{where}: {error}; {REMEDY}") from error
    for index, instance in enumerate(record["instances"]):
        missing = missing_keys(instance, INSTANCE_KEYS)
        if missing:
            raise ValueError(f"{where}: instance {index} lacks {missing}; {REMEDY}")
        try:
            _check_instance(instance, record["height"], record["width"])
        except ValueError as error:
            raise ValueError(f"{where}: instance {index}: {error}; {REMEDY}") from error


def _check_instance(instance: dict[str, Any], height: int, width: int) -> None:
    score = instance["score"]
    if not is_finite_number(score):
        raise ValueError(f"score {score!r} is not a finite number")
    if type(instance["category_id"]) is not int:
        raise ValueError(f"category_id {instance['category_id']!r} is not a whole number")
    check_segmentation(instance["segmentation"], height, width)
    if "point" in instance:
        finite_point(instance["point"])


def _read_lines(path: Path) -> Iterator[Located]:
    with open(path, "rb") as handle:
        for number, line in enumerate(handle, 1):
            where = f"{path}:{number}"
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                hint = REMEDY
                if not line.endswith(b"\n"):
                    hint = "was the run that writes it cut off? Then run it again to finish it"
                raise ValueError(f"{where}: not a json record ({error}); {hint}") from error
            check_record(where, record)
            yield where, record


def _unique(records: Iterator[Located]) -> Iterator[Located]:
    seen: set[int] = set()
    for where, record in records:
        image_id = record["image_id"]
        if image_id in seen:
            raise ValueError(
                f"{where}: image {image_id} has a record already; remove one of the two"
            )
        seen.add(image_id)
        yield where, record


def _group_results(results: list[dict[str, Any]], path: str | Path) -> list[dict[str, Any]]:
    """A flat COCO result list by image, in the order in which the images first appear."""
    images: dict[int, dict[str, Any]] = {}
    for number, result in enumerate(results):
        image_id = result.get("image_id")
        if type(image_id) is not int:
            raise ValueError(f"{path}: result {number}: image_id {image_id!r} is no whole number")
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
    record = {
        "image_id": info.image_id,
        "file_name": info.file_name,
        "height": info.height,
        "width": info.width,
        "instances": [_from_result(r, info, annotations, category_ids) for r in item["instances"]],
    }
    check_record(f"image {info.image_id}", record)
    return record


def _from_result(
    result: dict[str, Any],
    info: ImageInfo,
    annotations: Annotations,
    category_ids: tuple[int, ...] | None,
) -> dict[str, Any]:
    category = result["category_id"]
    if category_ids is not None:
        if not 0 <= category < len(category_ids):
            raise ValueError(f"class {category}; {annotations.path} has {len(category_ids)}")
        category = category_ids[category]
    score, box = result.get("score", 1.0), result.get("bbox", [0, 0, 1, 1])
    if not is_finite_number(score):
        raise ValueError(f"score {score!r} is not a finite number")
    if not isinstance(box, list | tuple) or len(box) != 4 or not all(map(is_finite_number, box)):
        raise ValueError(f"bbox {box!r} is not a list of 4 finite numbers")
    rle = segmentation_rle(result["segmentation"], info.height, info.width)
    point = _result_point(result, info) or rle_point(rle)
    return {"category_id": category, "score": float(score), "point": point, **mask_fields(rle)}


def _result_point(result: dict[str, Any], info: ImageInfo) -> list[float] | None:
    """The labeled point where it is stored as such or encoded in the box."""
    if "point" in result:
        return list(finite_point(result["point"]))
    y, x, height, width = result.get("bbox", (0, 0, 1, 1))
    # An encoded (y, x, 0, 0) box went through a conversion from corners to sizes. Where the
    # reference lost a point it left (0, 0), which therefore says nothing.
    if height == -y and width == -x and (x, y) != (0, 0):
        return [x * info.width / POINT_UNIT, y * info.height / POINT_UNIT]
    return None


def _reason(error: Exception) -> str:
    """What an error of a malformed entry says, in words."""
    return f"lacks {error}" if isinstance(error, KeyError) else str(error)


def rle_point(rle: dict[str, Any]) -> list[float]:
    """The center of mass of a compressed RLE; the middle of the image where it is empty."""
    runs = Runs.of(rle)
    return list(runs.center_of_mass()) if runs.area else [rle["size"][1] / 2, rle["size"][0] / 2]


def mask_instances(
    masks: np.ndarray,
    category_ids: Sequence[int],
    scores: Sequence[float],
    points: Sequence[Sequence[float] | None],
) -> list[dict[str, Any]]:
    """Instances of a record from masks (N, H, W) of 0 and 1; no `point` where that is None."""
    instances = []
    for mask, category_id, score, point in zip(masks, category_ids, scores, points, strict=True):
        rle = mask_utils.encode(np.asfortranarray(mask, dtype=np.uint8))
        fields = mask_fields(rle)
        instance = {"category_id": category_id, "score": score}
        instance |= {"bbox": fields["bbox"], "area": fields["area"]}
        if point is not None:
            instance["point"] = [float(value) for value in point]
        instances.append(instance | {"segmentation": fields["segmentation"]})
    return instances


def instance_point(instance: dict[str, Any], height: int, width: int) -> list[float]:
    """The labeled point of a record's instance; its mask's center where it has none."""
    if "point" in instance:
        return instance["point"]
    return rle_point(segmentation_rle(instance["segmentation"], height, width))
