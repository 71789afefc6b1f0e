"""Precomputed proposals: boxes from another program, in npz or JSON files."""

import logging
from typing import Any

import numpy as np

from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager
from weaklabels.arrays import read_npz
from weaklabels.files import objects, read_json

__all__ = ["load_proposals_into_dataset", "read_proposals"]

_NPZ_FORMAT = (
    "arrays image_ids (P,), boxes (P, 4), scores (P,) and optionally bbox_mode, a number of "
    "BoxMode (0, the default: x0, y0, x1, y1)"
)
_JSON_FORMAT = 'a list of {"image_id": ..., "bbox": [x, y, width, height], "score": ...}'

logger = logging.getLogger(__name__)


def read_proposals(path: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image ids (P,) str, boxes (P, 4) float32 x0, y0, x1, y1 in pixels, and scores (P,) float32.

    Args:
        path: `.npz` with arrays image_ids, boxes, scores (and bbox_mode), or `.json` in COCO's
            format of detection results.
    """
    if not PathManager.isfile(path):
        raise FileNotFoundError(f"proposal file '{path}' does not exist")
    if path.endswith(".npz"):
        ids, boxes, scores, mode = _read_npz(path)
    elif path.endswith(".json"):
        ids, boxes, scores, mode = _read_json(path)
    else:
        raise ValueError(
            f"proposal file '{path}' must be .npz ({_NPZ_FORMAT}) or .json ({_JSON_FORMAT}); "
            "pickles are not read, since that runs code"
        )
    if boxes.shape != (len(ids), 4) or scores.shape != (len(ids),):
        raise ValueError(
            f"proposal file '{path}' has {len(ids)} image ids, but boxes of shape {boxes.shape} "
            f"and scores of shape {scores.shape}"
        )
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise ValueError(f"proposal file '{path}' holds infinite or NaN boxes or scores")
    boxes = BoxMode.convert(boxes, mode, BoxMode.XYXY_ABS)
    return ids.astype(str), boxes, scores


def _read_npz(path: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, BoxMode]:
    keys = ("image_ids", "boxes", "scores")
    data = read_npz(PathManager.get_local_path(path), keys, f"proposals: {_NPZ_FORMAT}")
    try:
        mode = BoxMode(int(data["bbox_mode"])) if "bbox_mode" in data else BoxMode.XYXY_ABS
        boxes, scores = (data[key].astype(np.float32) for key in ("boxes", "scores"))
        return data["image_ids"].reshape(-1), boxes, scores, mode
    except (TypeError, ValueError) as error:
        raise ValueError(f"proposal file '{path}': {error}; expected {_NPZ_FORMAT}") from error


def _read_json(path: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, BoxMode]:
    records = objects(read_json(PathManager.get_local_path(path)), f"proposal file '{path}'")
    for i, record in enumerate(records):
        if not {"image_id", "bbox", "score"} <= record.keys():
            raise ValueError(
                f"proposal file '{path}', record {i}: {record!r}; expected {_JSON_FORMAT}"
            )
    ids = np.array([str(record["image_id"]) for record in records], dtype=str)
    try:
        boxes = np.array([record["bbox"] for record in records], dtype=np.float32).reshape(-1, 4)
        scores = np.array([record["score"] for record in records], dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"proposal file '{path}': {error}; expected {_JSON_FORMAT}") from error
    return ids, boxes, scores, BoxMode.XYWH_ABS


def load_proposals_into_dataset(
    dataset_dicts: list[dict[str, Any]], proposal_file: str
) -> list[dict[str, Any]]:
    """Give each dict its proposals, best first; changes and returns the dicts.

    They get `proposal_boxes` (N, 4) float32, `proposal_objectness_logits` (N,) float32 (the file's
    scores) and `proposal_bbox_mode`; N is 0 for an image that the file lacks.

    Args:
        dataset_dicts: with `image_id`; ids are compared as text, and VOC's names also as numbers.
        proposal_file: see `read_proposals`.
    """
    logger.info("Reading proposals of %d images from %s", len(dataset_dicts), proposal_file)
    ids, boxes, scores = read_proposals(proposal_file)
    order = np.lexsort((-scores, ids))  # by image, best first; ties as in the file
    ids, boxes, scores = ids[order], boxes[order], scores[order]
    names, starts = np.unique(ids, return_index=True)
    ends = np.append(starts[1:], len(ids))
    span_of = {
        str(name): slice(start, end) for name, start, end in zip(names, starts, ends, strict=True)
    }
    unnamed = []
    for record in dataset_dicts:
        name = str(record["image_id"])
        digits = name.replace("_", "")  # VOC's name 2008_000002 is the number 2008000002
        number = str(int(digits)) if digits.isdecimal() else name
        span = span_of.get(name) or span_of.get(number, slice(0, 0))
        if span.start == span.stop:
            unnamed.append(record["image_id"])
        record["proposal_boxes"] = boxes[span]
        record["proposal_objectness_logits"] = scores[span]
        record["proposal_bbox_mode"] = BoxMode.XYXY_ABS
    if len(unnamed) == len(dataset_dicts) and dataset_dicts:
        raise ValueError(
            f"proposal file '{proposal_file}' has boxes for none of {len(dataset_dicts)} images "
            f"(such as image_id {unnamed[0]!r}); its ids are {list(span_of)[:5]}, ... "
            "and may be those of another dataset"
        )
    if unnamed:
        logger.warning(
            "%s has no proposals for %d of %d images, such as image_id %s",
            *(proposal_file, len(unnamed), len(dataset_dicts), unnamed[0]),
        )
    return dataset_dicts
