"""Compare pseudo labels with hidden true masks, instance by instance.

A pseudo label is judged against the instance that its point was labelled for, not against the
one that it happens to overlap most. Points are (x, y) in pixel indices of the original image.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as mask_utils
from scipy.optimize import linear_sum_assignment

EXACT_PIXELS = 1.0  # a label's point and an instance's point this close are the same point
BOX_MARGIN = 0.25  # of the box's side: how far off its instance a noisy point may lie
BOUNDARY_SHARE = 0.02  # boundary width, of the image's diagonal (Cheng et al., CVPR 2021)
SMALL_AREA, MEDIUM_AREA = 32**2, 96**2  # COCO's size classes, pixels
NO_MATCH = 1e6


@dataclass(frozen=True)
class Label:
    """One instance, true or pseudo.

    rle: compressed, `counts` bytes.  point: (x, y).  score: 1 for true instances.
    """

    category_id: int
    rle: dict[str, Any]
    point: tuple[float, float]
    score: float = 1.0
    crowd: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of one labelled point; both IoUs are 0 where it got no pseudo label."""

    category_id: int
    area: int
    labelled: bool
    iou: float = 0.0
    boundary_iou: float = 0.0


@dataclass
class ImageLabels:
    """One image of the comparison; `matches` maps a true instance's index to its pseudo label's."""

    image: dict[str, Any]
    truth: list[Label] = field(default_factory=list)
    pseudo: list[Label] = field(default_factory=list)
    matches: dict[int, int] = field(default_factory=dict)


def match_points(truth: list[Label], pseudo: list[Label]) -> dict[int, int]:
    """Index of the pseudo label of each true instance that has one; one to one, crowds aside.

    For each pseudo label, instances of its class count in this order, and only the best kind is
    considered: (1) its point is the instance's point, (2) its point lies in the instance's mask,
    (3) its point lies in the box, or close. Within a kind the nearest instance's point wins; all
    labels of an image are assigned together, so that the sum of distances is the least.
    """
    matches: dict[int, int] = {}
    for category in sorted({label.category_id for label in pseudo}):
        rows = [i for i, t in enumerate(truth) if t.category_id == category and not t.crowd]
        columns = [j for j, p in enumerate(pseudo) if p.category_id == category]
        if not rows:
            continue
        costs = _costs([truth[i] for i in rows], [pseudo[j] for j in columns])
        for row, column in zip(*linear_sum_assignment(costs), strict=True):
            if costs[row, column] < NO_MATCH:
                matches[rows[row]] = columns[column]
    return matches


def _costs(truth: list[Label], pseudo: list[Label]) -> np.ndarray:
    """(truth, pseudo) distances in pixels, NO_MATCH where the pair is not admissible."""
    points = np.array([label.point for label in pseudo])
    distances = np.array([np.linalg.norm(points - t.point, axis=1) for t in truth])
    kinds = np.full(distances.shape, 3)
    for row, label in enumerate(truth):
        kinds[row, _near_box(label, points)] = 2
        kinds[row, _in_mask(label, points)] = 1
    kinds[distances <= EXACT_PIXELS] = 0
    best = np.minimum(kinds.min(axis=0), 2)
    return np.where(kinds == best, distances, NO_MATCH)


def _near_box(label: Label, points: np.ndarray) -> np.ndarray:
    corner, size = np.split(mask_utils.toBbox(label.rle), 2)
    margin = np.maximum(BOX_MARGIN * size, 1.0)
    return ((points >= corner - margin) & (points <= corner + size - 1 + margin)).all(axis=1)


def _in_mask(label: Label, points: np.ndarray) -> np.ndarray:
    mask = mask_utils.decode(label.rle)
    x, y = np.rint(points).astype(np.int64).T
    height, width = mask.shape
    return mask[np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)] > 0


def judge(image: ImageLabels) -> list[Outcome]:
    """The outcome of every point (true instance that is no crowd) of an image."""
    outcomes = []
    for index, truth in enumerate(image.truth):
        if truth.crowd:
            continue
        area = int(mask_utils.area(truth.rle))
        if index not in image.matches:
            outcomes.append(Outcome(truth.category_id, area, labelled=False))
            continue
        pseudo = image.pseudo[image.matches[index]]
        iou = float(mask_utils.iou([pseudo.rle], [truth.rle], [0])[0, 0])
        pair = (mask_utils.decode(label.rle) for label in (truth, pseudo))
        outcomes.append(Outcome(truth.category_id, area, True, iou, boundary_iou(*pair)))
    return outcomes


def boundary_iou(first: np.ndarray, second: np.ndarray) -> float:
    """IoU of the inner boundary bands of two masks (H, W) uint8; 0 where both are empty.

    A band holds a mask's pixels within 2% of the image's diagonal of its outside, where all
    beyond the image counts as outside.
    """
    reach = max(1, round(BOUNDARY_SHARE * float(np.hypot(*first.shape))))
    x, y, w, h = cv2.boundingRect(first | second)  # beyond it there is no band
    window = np.s_[y : y + h, x : x + w]
    bands = [_band(np.ascontiguousarray(mask[window]), reach) for mask in (first, second)]
    union = np.count_nonzero(bands[0] | bands[1])
    return np.count_nonzero(bands[0] & bands[1]) / union if union else 0.0


def _band(mask: np.ndarray, reach: int) -> np.ndarray:
    if not mask.size:
        return mask.astype(bool)
    kernel = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    inner = cv2.erode(mask, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return (mask > 0) & (inner == 0)


def summarise(outcomes: Iterable[Outcome]) -> dict[str, float | int | None]:
    """Shares and means in percent over points; None where there is nothing to take them over.

    `miou` and `boundary_iou` count a point without a label as 0; `miou_labelled` leaves it out.
    """
    outcomes = list(outcomes)
    labelled = [o for o in outcomes if o.labelled]
    return {
        "points": len(outcomes),
        "labelled": len(labelled),
        "recall": _percent([o.labelled for o in outcomes]),
        "recall_iou50": _percent([o.iou >= 0.5 for o in outcomes]),
        "miou": _percent([o.iou for o in outcomes]),
        "miou_labelled": _percent([o.iou for o in labelled]),
        "boundary_iou": _percent([o.boundary_iou for o in outcomes]),
    }


def _percent(values: list[Any]) -> float | None:
    return round(100 * float(np.mean(values)), 3) if values else None


def size_class(area: int) -> str:
    """COCO's name for an instance of `area` pixels."""
    return "small" if area < SMALL_AREA else "medium" if area < MEDIUM_AREA else "large"
