"""Mask AP of pseudo labels: how well they agree with the true masks."""

import contextlib
import io
from collections.abc import Iterable
from typing import Any

from pycocotools import mask as mask_api
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from .annotations import Annotations, ImageInfo, mask_rle
from .records import Record

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def evaluate_records(records: Iterable[Record], annotations: Annotations) -> dict[str, float]:
    """COCO mask AP, in percent, with all scores 1, on the images of the records.

    A size without ground truth has AP -100, as pycocotools says -1.

    Raises:
        ValueError: where the annotations have no usable mask of an instance.
    """
    images, results = [], []
    for record in records:
        images.append(record["image_id"])
        for instance in record["instances"]:
            results.append(
                {
                    "id": len(results) + 1,
                    "image_id": record["image_id"],
                    "category_id": instance["category_id"],
                    "segmentation": instance["segmentation"],
                    "area": float(mask_api.area(instance["segmentation"])),
                    "iscrowd": 0,
                    "score": 1.0,
                }
            )
    truth = [row for image_id in images for row in _true_rows(annotations, image_id)]
    for number, row in enumerate(truth, start=1):
        row["id"] = number
    if not truth:
        raise ValueError(f"{annotations.path}: no instance on the predictions' images")
    # pycocotools tells its progress on stdout.
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(
            _coco(images, annotations, truth), _coco(images, annotations, results), "segm"
        )
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {
        name: 100 * float(value) for name, value in zip(METRICS, evaluation.stats, strict=False)
    }


def _true_rows(annotations: Annotations, image_id: int) -> list[dict[str, Any]]:
    if image_id not in annotations.images:
        raise ValueError(f"{annotations.path} has no image {image_id}, the predictions have")
    image, rows = annotations.images[image_id], []
    for annotation in annotations.instances[image_id]:
        rle = mask_rle(annotations, annotation, image, "evaluation")
        rows.append(
            {
                "image_id": image_id,
                "category_id": annotation["category_id"],
                "segmentation": rle,
                "area": annotation.get("area", float(mask_api.area(rle))),
                "iscrowd": annotation.get("iscrowd", 0),
            }
        )
    return rows


def _coco(images: list[int], annotations: Annotations, rows: list[dict[str, Any]]) -> COCO:
    coco = COCO()
    coco.dataset = {
        "images": [_coco_image(annotations.images[image_id]) for image_id in images],
        "categories": list(annotations.categories),
        "annotations": rows,
    }
    coco.createIndex()
    return coco


def _coco_image(image: ImageInfo) -> dict[str, Any]:
    return {"id": image.image_id, "height": image.height, "width": image.width}
