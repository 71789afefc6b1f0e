"""Statistics of pseudo labels against hidden true masks, instance by instance.

A pseudo label is judged against the instance that its point was labeled for, not against the one
that it happens to overlap most.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as mask_utils

from weaklabels.matching import Label

BOUNDARY_SHARE = 0.02  # boundary width, of the image's diagonal (Cheng et al., CVPR 2021)
SMALL_AREA, MEDIUM_AREA = 32**2, 96**2  # COCO's size classes, pixels


@dataclass(frozen=True)
class Outcome:
    """What became of one labeled point; both IoUs are 0 where it got no pseudo label."""

    category_id: int
    area: int
    labeled: bool
    iou: float = 0.0
    boundary_iou: float = 0.0


@dataclass
class ImageLabels:
    """One image of the comparison; `matches` maps a true instance's index to its pseudo label's."""

    image: dict[str, Any]
    truth: list[Label] = field(default_factory=list)
    pseudo: list[Label] = field(default_factory=list)
    matches: dict[int, int] = field(default_factory=dict)


def judge(image: ImageLabels) -> list[Outcome]:
    """The outcome of every point (true instance that is no crowd) of an image."""
    outcomes = []
    for index, truth in enumerate(image.truth):
        if truth.crowd:
            continue
        area = int(mask_utils.area(truth.rle))
        if index not in image.matches:
            outcomes.append(Outcome(truth.category_id, area, labeled=False))
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


def summarize(outcomes: Iterable[Outcome]) -> dict[str, float | int | None]:
    """Shares and means in percent over points; None where there is nothing to take them over.

    `miou` and `boundary_iou` count a point without a label as 0; `miou_labelled` leaves it out.
    """
    outcomes = list(outcomes)
    labeled = [o for o in outcomes if o.labeled]
    return {
        "points": len(outcomes),
        "labelled": len(labeled),
        "recall": _percent([o.labeled for o in outcomes]),
        "recall_iou50": _percent([o.iou >= 0.5 for o in outcomes]),
        "miou": _percent([o.iou for o in outcomes]),
        "miou_labelled": _percent([o.iou for o in labeled]),
        "boundary_iou": _percent([o.boundary_iou for o in outcomes]),
    }


def _percent(values: list[Any]) -> float | None:
    return round(100 * float(np.mean(values)), 3) if values else None


def size_class(area: int) -> str:
    """COCO's name for an instance of `area` pixels."""
    return "small" if area < SMALL_AREA else "medium" if area < MEDIUM_AREA else "large"
