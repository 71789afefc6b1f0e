"""How well a classifier ranks images, and how well points find objects."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from detectron2.structures import BoxMode

from .points import PointFile


def average_precision(scores: np.ndarray, relevant: np.ndarray) -> float:
    """Mean precision at each relevant entry (N,) of a ranking; ties keep their order.

    Nan where nothing is relevant.
    """
    hits = relevant.astype(bool)[np.argsort(-scores, kind="stable")]
    if not hits.any():
        return float("nan")
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float(precision[hits].mean())


def classification_metrics(scores: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
    """Of scores and targets (N, C).

    Returns: "class_AP", the mean over classes of how images are ranked, by which checkpoints are
    chosen; "per_class_AP", None for a class that no image shows; "image_AP", the mean over images
    of how classes are ranked, which upstream calls mAP.
    """
    per_class = [average_precision(s, t) for s, t in zip(scores.T, targets.T, strict=True)]
    per_image = [average_precision(s, t) for s, t in zip(scores, targets, strict=True)]
    if np.isnan(per_class).all():
        raise ValueError("no image has a tag: there is nothing to measure")
    return {
        "class_AP": float(np.nanmean(per_class)),
        "image_AP": float(np.nanmean(per_image)),
        "per_class_AP": [None if np.isnan(value) else value for value in per_class],
    }


def point_metrics(content: PointFile, truth: Sequence[dict[str, Any]]) -> dict[str, float]:
    """How points meet true boxes; for evaluation only.

    Args:
        truth: dataset dicts with `annotations`, whose `image_id` as text are the points' ids.

    Returns: "points" per image; "hit_rate", the share of points in a box of their class (of any
    class for points that have none); "found", the share of objects with such a point.
    """
    by_id = {str(entry["image_id"]): entry for entry in truth}
    if missing := [image_id for image_id in content.ids if image_id not in by_id]:
        raise ValueError(f"image id {missing[0]} of the points is not in the true boxes")
    hits = points = found = objects = 0
    for image_id, image_points in zip(content.ids, content.points, strict=True):
        annotations = [a for a in by_id[image_id]["annotations"] if not a.get("iscrowd", 0)]
        boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
        x1, y1, x2, y2 = np.array(boxes, np.float64).reshape(-1, 4).T
        x, y = image_points.xy.T[..., None] + 0.5  # the middle of the pixel
        classes = np.array([a["category_id"] for a in annotations], np.int64)
        of_class = (image_points.cls[:, None] == classes) | (image_points.cls[:, None] < 0)
        inside = of_class & (x > x1) & (x < x2) & (y > y1) & (y < y2)  # (P, objects)
        hits, points = hits + inside.any(axis=1).sum(), points + len(image_points)
        found, objects = found + inside.any(axis=0).sum(), objects + len(annotations)
    return {
        "points": points / max(len(content), 1),
        "hit_rate": float(hits / points) if points else float("nan"),
        "found": float(found / objects) if objects else float("nan"),
    }
