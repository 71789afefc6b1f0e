"""The images and labels that DINO trains on."""

import logging
from typing import Any

from detectron2.structures import BoxMode

__all__ = ["leave_out_small"]

logger = logging.getLogger(__name__)


def leave_out_small(
    dataset_dicts: list[dict[str, Any]], min_image_side: float, min_box_side: float
) -> list[dict[str, Any]]:
    """Leave out small images and boxes, and images that lose all their boxes; see the log.

    Args:
        min_image_side, min_box_side: the shorter side is at least this long, pixels of the file.

    Raises:
        ValueError: an annotation has no box, or nothing is left.
    """
    kept, small_boxes = [], 0
    for record in dataset_dicts:
        boxes = record["annotations"]
        if not all("bbox" in box for box in boxes):
            raise ValueError(
                f"{record.get('file_name')} has an annotation without a bbox: DINO trains on boxes"
            )
        large = [box for box in boxes if _shorter_side(box) >= min_box_side]
        small_boxes += len(boxes) - len(large)
        if min(record["height"], record["width"]) < min_image_side or (boxes and not large):
            continue
        kept.append(record | {"annotations": large})
    logger.info(
        "%d of %d images are trained on: with sides of at least %g pixels, and not without boxes "
        "after %d boxes with a side below %g pixels were left out",
        *(len(kept), len(dataset_dicts), min_image_side, small_boxes, min_box_side),
    )
    if not kept:
        raise ValueError(
            f"none of {len(dataset_dicts)} images has a side of {min_image_side} pixels and a box "
            f"with one of {min_box_side}: lower MODEL.DINO.MIN_IMAGE_SIDE or MIN_BOX_SIDE"
        )
    return kept


def _shorter_side(annotation: dict[str, Any]) -> float:
    box = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYWH_ABS)
    return min(box[2:4])
