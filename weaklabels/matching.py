"""Say which pseudo label belongs to which true instance, by their points.

Points are (x, y) in pixel indices of the original image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils
from scipy.optimize import linear_sum_assignment

EXACT_PIXELS = 1.0  # a label's point and an instance's point this close are the same point
BOX_MARGIN = 0.25  # of the box's side: how far off its instance a noisy point may lie


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


Pairs = list[tuple[int, int]]  # index of the true instance, index of the pseudo label


def match_labels(truth: Sequence[Label], pseudo: Sequence[Label], rule: str) -> Pairs:
    """Pairs of labels of one image and of the same class, in the order of the pseudo labels.

    Crowds match nothing. Rules:
    "likeliest": an instance counts for a pseudo label as (1) one whose point is the same, (2) one
        whose mask holds its point, (3) one whose box holds its point, or nearly; only the best kind
        is considered. One to one, with the least sum of distances.
    "one_to_one": the least sum of distances; no pair is farther apart than half the diagonal of the
        instance's box.
    "nearest": the reference's rule. Every pseudo label goes to the nearest instance, however far,
        even twice.

    Raises:
        ValueError: an unknown rule.
    """
    if rule not in RULES:
        raise ValueError(f"matching rule {rule!r}; expected one of {tuple(RULES)}")
    pairs: Pairs = []
    for category in sorted({label.category_id for label in pseudo}):
        rows = [i for i, t in enumerate(truth) if t.category_id == category and not t.crowd]
        columns = [j for j, p in enumerate(pseudo) if p.category_id == category]
        if rows:
            found = RULES[rule]([truth[i] for i in rows], [pseudo[j] for j in columns])
            pairs += [(rows[i], columns[j]) for i, j in found]
    return sorted(pairs, key=lambda pair: pair[1])


def _likeliest(truth: list[Label], pseudo: list[Label]) -> Pairs:
    distances = _distances(truth, pseudo)
    points = np.array([label.point for label in pseudo])
    kinds = np.full(distances.shape, 3)
    for row, label in enumerate(truth):
        kinds[row, _near_box(label, points)] = 2
        kinds[row, _in_mask(label, points)] = 1
    kinds[distances <= EXACT_PIXELS] = 0
    return _assign(distances, kinds == np.minimum(kinds.min(axis=0), 2))


def _one_to_one(truth: list[Label], pseudo: list[Label]) -> Pairs:
    distances = _distances(truth, pseudo)
    sides = np.array([mask_utils.toBbox(label.rle)[2:] for label in truth])
    return _assign(distances, distances <= np.hypot(*sides.T)[:, None] / 2)


def _nearest(truth: list[Label], pseudo: list[Label]) -> Pairs:
    nearest = _distances(truth, pseudo).argmin(axis=0)
    return [(int(row), column) for column, row in enumerate(nearest)]


RULES = {"one_to_one": _one_to_one, "nearest": _nearest, "likeliest": _likeliest}


def _distances(truth: list[Label], pseudo: list[Label]) -> np.ndarray:
    """(truth, pseudo) distances of points, pixels."""
    own = np.array([label.point for label in truth], dtype=np.float64)
    points = np.array([label.point for label in pseudo], dtype=np.float64)
    return np.linalg.norm(points[None] - own[:, None], axis=2)


def _assign(distances: np.ndarray, allowed: np.ndarray) -> Pairs:
    """The most allowed pairs, one to one, and of these choices the one of least total distance."""
    # A forbidden pair costs more than all allowed ones together, so it displaces none.
    forbidden = 1 + distances[allowed].sum()
    rows, columns = linear_sum_assignment(np.where(allowed, distances, forbidden))
    return [(int(i), int(j)) for i, j in zip(rows, columns, strict=True) if allowed[i, j]]


def _near_box(label: Label, points: np.ndarray) -> np.ndarray:
    corner, size = np.split(mask_utils.toBbox(label.rle), 2)
    margin = np.maximum(BOX_MARGIN * size, 1.0)
    return ((points >= corner - margin) & (points <= corner + size - 1 + margin)).all(axis=1)


def _in_mask(label: Label, points: np.ndarray) -> np.ndarray:
    mask = mask_utils.decode(label.rle)
    x, y = np.rint(points).astype(np.int64).T
    height, width = mask.shape
    return mask[np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)] > 0
