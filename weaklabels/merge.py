"""Merge strong labels and pseudo labels into one COCO file, the student's training set.

Strong annotations are kept as they are, pseudo ones follow in the records' order; ids are 1..N.
Images are the strong ones, then the weak ones, with or without a surviving label. Labels are
streamed: memory holds the images only.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pycocotools import mask as mask_utils
from tqdm import tqdm

from weaklabels.coco import CocoFile, CocoWriter
from weaklabels.files import atomic_text
from weaklabels.masks import json_rle, segmentation_rle
from weaklabels.records import read_records


@dataclass
class Counts:
    """What a merged file holds and what was left out of it; `records` has the images' ids."""

    strong_images: int = 0
    weak_images: int = 0
    strong: int = 0
    pseudo: int = 0
    low_scores: int = 0
    empty_masks: int = 0
    records: set[int] = field(default_factory=set, repr=False)


def pseudo_annotation(
    instance: dict[str, Any], image: dict[str, Any], categories: set[int]
) -> dict[str, Any] | None:
    """COCO fields (without id) of one predicted instance; None where its mask is empty.

    Box and area are measured on the mask, whatever the record says. Raises ValueError for a
    category or a mask that does not belong to the image's dataset.
    """
    category_id = instance["category_id"]
    if category_id not in categories:
        raise ValueError(
            f"category_id {category_id!r}; expected one of the strong file's: {sorted(categories)}"
        )
    rle = segmentation_rle(instance["segmentation"], image["height"], image["width"])
    area = int(mask_utils.area(rle))
    if not area:
        return None
    point = {"point": instance["point"]} if "point" in instance else {}
    return {
        "image_id": image["id"],
        "category_id": category_id,
        "iscrowd": 0,
        "bbox": [int(v) for v in mask_utils.toBbox(rle)],
        "area": area,
        "score": instance["score"],
        **point,
        "segmentation": json_rle(rle),
    }


def pseudo_annotations(
    records: Iterable[tuple[str, dict[str, Any]]],
    weak_images: dict[int, dict[str, Any]],
    strong: CocoFile,
    min_score: float,
    counts: Counts,
) -> Iterator[dict[str, Any]]:
    """Annotations of all records, one at a time; `counts` is kept up to date.

    Raises:
        ValueError: naming the record's line, for an image that is strong, unknown or of another
            size, and for what `pseudo_annotation` refuses.
    """
    categories = set(strong.category_ids)
    for where, record in records:
        image_id = record["image_id"]
        counts.records.add(image_id)
        if image_id in strong.images:
            raise ValueError(f"{where}: image {image_id} has strong labels in {strong.path}")
        if image_id not in weak_images:
            raise ValueError(
                f"{where}: image {image_id} is in neither the strong nor the weak file; give the "
                "records of this weak file"
            )
        image = weak_images[image_id]
        if any(record[key] != image[key] for key in ("height", "width")):
            raise ValueError(
                f"{where}: image {image_id} is {record['height']} x {record['width']} here, "
                f"{image['height']} x {image['width']} in the weak file"
            )
        for index, instance in enumerate(record["instances"]):
            if instance["score"] < min_score:
                counts.low_scores += 1
                continue
            try:
                annotation = pseudo_annotation(instance, image, categories)
            except ValueError as error:
                raise ValueError(f"{where}: instance {index}: {error}") from error
            if annotation is None:
                counts.empty_masks += 1
                continue
            counts.pseudo += 1
            yield annotation


def refuse_other_categories(strong: CocoFile, weak: CocoFile) -> None:
    """ValueError where a category has another name in the weak file, or is in one file only."""
    names, others = (
        {category["id"]: category["name"] for category in file.header["categories"]}
        for file in (strong, weak)
    )
    for number in sorted(names.keys() | others.keys()):
        if names.get(number) != others.get(number):
            here, there = (
                repr(known[number]) if number in known else "missing" for known in (others, names)
            )
            raise ValueError(
                f"category id {number} is {here} in {weak.path}, but {there} in {strong.path}: "
                "both need the same ids and names; for points of your own, tools/import_points.py "
                f"--categories {strong.path} takes them over"
            )


def refuse_shared_images(strong: CocoFile, weak_images: dict[int, dict], weak_path: Path) -> None:
    """ValueError where an image id is in both files."""
    both = sorted(strong.images.keys() & weak_images.keys())
    if both:
        here, there = (images[both[0]]["file_name"] for images in (weak_images, strong.images))
        raise ValueError(
            f"{weak_path}: {len(both)} images have strong labels in {strong.path}, e.g. image id "
            f"{both[0]}, {here!r} here and {there!r} there: an image belongs to one of the files, "
            "and no two share an id; for points of your own, tools/import_points.py "
            f"--categories {strong.path} sees to both"
        )


def refuse_missing_records(path: Path, records: set[int], weak_images: dict[int, dict]) -> None:
    """ValueError where weak images have no record: the run that writes them was cut off."""
    missing = [image for image_id, image in weak_images.items() if image_id not in records]
    if missing or not records:
        example = f", such as image id {missing[0]['id']}" if missing else ""
        raise ValueError(
            f"{path} has records of {len(records)} of the {len(weak_images)} weak images and "
            f"lacks the others{example}: finish the run that writes it, or let images without a "
            "record enter without labels with --allow-missing"
        )


def images_of_records(path: Path) -> dict[int, dict[str, Any]]:
    """Image entries by id, as the records themselves describe them."""
    found: dict[int, dict[str, Any]] = {}
    for _, record in read_records(path):
        image = {key: record[key] for key in ("file_name", "height", "width")}
        found[record["image_id"]] = {"id": record["image_id"], **image}
    return found


def merge_labels(
    strong_path: Path | None,
    records_path: Path,
    out_path: Path,
    weak_path: Path | None = None,
    min_score: float = -math.inf,
    allow_missing: bool = False,
) -> Counts:
    """Write the merged file; returns what is in it. The module's docstring says in which order.

    Args:
        strong_path: None where no image has strong labels; `weak_path` then tells the categories.
        allow_missing: weak images without a record enter without labels; else they are an error.

    Raises:
        ValueError: an input cannot be used; it names the file and the entry.
    """
    if math.isnan(min_score):
        raise ValueError("--min-score nan: must be a number")
    if strong_path is None and weak_path is None:
        raise ValueError(
            "categories are not known: give --weak-annotations, or strong labels with --annotations"
        )
    strong = CocoFile(strong_path or weak_path)
    if strong_path is None:
        strong.images = {}
    if weak_path:
        weak = CocoFile(weak_path)
        refuse_other_categories(strong, weak)
        weak_images = weak.images
    else:
        weak_images = images_of_records(records_path)
    refuse_shared_images(strong, weak_images, weak_path or records_path)
    counts = Counts(strong_images=len(strong.images), weak_images=len(weak_images))
    images = [*strong.images.values(), *weak_images.values()]
    with atomic_text(out_path) as handle:
        writer = CocoWriter(handle, strong.header | {"images": images}, strong.path)
        for annotation in strong.annotations() if strong_path else ():
            where = f"{strong.path}: annotation id {annotation['id']}"
            writer.add(annotation | {"id": writer.count + 1}, where)
        counts.strong = writer.count
        records = tqdm(read_records(records_path), "records", unit="image")
        for annotation in pseudo_annotations(records, weak_images, strong, min_score, counts):
            writer.add({"id": writer.count + 1} | annotation)
        if not allow_missing:
            refuse_missing_records(records_path, counts.records, weak_images)
        writer.close()
    return counts
