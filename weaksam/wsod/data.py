"""The images and proposals that a weak detector trains on."""

import logging
from typing import Any

import numpy as np

from detectron2.structures import BoxMode

__all__ = ["prepare_weak_dataset"]

logger = logging.getLogger(__name__)


def prepare_weak_dataset(
    dataset_dicts: list[dict[str, Any]], min_side: float, is_train: bool
) -> list[dict[str, Any]]:
    """Leave out duplicate and small proposals and, in training, images with nothing to learn from.

    Every rank computes the same. What is left out is counted in the log.

    Args:
        dataset_dicts: with `proposal_boxes`, `proposal_objectness_logits`, `proposal_bbox_mode`
            and, in training, `image_labels`.
        min_side: proposals with a shorter side go, original pixels.

    Raises:
        ValueError: in training, an image's `image_labels` are missing, or no image is left.
    """
    kept, without_tags, without_proposals, num_boxes = [], 0, 0, 0
    for record in dataset_dicts:
        if is_train and "image_labels" not in record:
            raise ValueError(
                f"{record.get('file_name', record.get('image_id'))} has no image_labels: "
                "DATASETS.TRAIN must name a tag file (made by `wsis tags`)"
            )
        record = _filtered(record, min_side)
        num_boxes += len(record["proposal_boxes"])
        has_tags, has_boxes = bool(record.get("image_labels")), len(record["proposal_boxes"]) > 0
        without_tags += is_train and not has_tags
        without_proposals += not has_boxes
        if not is_train or (has_tags and has_boxes):
            kept.append(record)
    logger.info(
        "%d images with %.1f proposals each, duplicates and sides below %g pixels left out; %d "
        "without tags, %d without proposals%s",
        *(len(dataset_dicts), num_boxes / max(1, len(dataset_dicts)), min_side),
        *(without_tags, without_proposals, ", not trained on" if is_train else ""),
    )
    if not kept:
        raise ValueError(
            f"none of {len(dataset_dicts)} images has a tag and a proposal of at least {min_side} "
            "pixels a side: lower MODEL.WSOD.MIN_BOX_SIDE, or look at the proposal file"
        )
    return kept


def _filtered(record: dict[str, Any], min_side: float) -> dict[str, Any]:
    """A copy whose proposals lie in the image, are large enough, and occur once, in their order."""
    if "proposal_boxes" not in record:
        raise ValueError(
            f"{record.get('file_name', record.get('image_id'))} has no proposals: set "
            "MODEL.LOAD_PROPOSALS True and DATASETS.PROPOSAL_FILES_TRAIN and _TEST"
        )
    mode = record["proposal_bbox_mode"]
    boxes = BoxMode.convert(np.array(record["proposal_boxes"]), mode, BoxMode.XYXY_ABS)
    boxes[:, 0::2] = boxes[:, 0::2].clip(0, record["width"])
    boxes[:, 1::2] = boxes[:, 1::2].clip(0, record["height"])
    _, first = np.unique(boxes, axis=0, return_index=True)
    sides = (boxes[:, 2:] - boxes[:, :2]).min(axis=1, initial=np.inf)
    rows = np.array([row for row in np.sort(first) if sides[row] >= max(min_side, 1e-3)], dtype=int)
    return record | {
        "proposal_boxes": boxes[rows],
        "proposal_objectness_logits": np.asarray(record["proposal_objectness_logits"])[rows],
        "proposal_bbox_mode": BoxMode.XYXY_ABS,
    }
