"""Proposals of one image from prompts: a grid of clicks, clue points alone and by class.

The image is encoded once for all of them. Boxes come in the order grid, coarse, fine, cross.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torchvision.ops import nms

from weaksam.proposals.boxes import mask_boxes, ordered_nms
from weaksam.proposals.files import ImageProposals
from weaksam.segmenters.protocol import MaskBatch, Segmenter

POINT_SOURCES = ("coarse", "fine", "cross")
Points = Mapping[str, tuple[np.ndarray, np.ndarray]]  # source: xy (n, 2), classes (n,)


@dataclass(frozen=True)
class Grid:
    """The dense grid: clicks at cell centers, three masks each, filtered and suppressed.

    min_predicted_iou is exceeded, min_stability reached; then NMS ranked by predicted IoU.
    """

    points_per_side: int = 32
    min_predicted_iou: float = 0.3
    min_stability: float = 0.3
    nms: float = 0.3

    def __post_init__(self) -> None:
        if self.points_per_side < 1:
            raise ValueError(f"points_per_side={self.points_per_side}; expected at least 1")


@dataclass(frozen=True)
class Clicks:
    """Clue points: which of the three masks are kept (finest first), and what else is.

    by_class: sources whose points of a class are also one prompt together.
    The minimums are as in `Grid`; the reference has none.  cross_nms: score-free, of cross alone.
    """

    masks: tuple[int, ...] = (1, 2)
    by_class: tuple[str, ...] = ("coarse", "fine")
    min_predicted_iou: float = 0.0
    min_stability: float = 0.0
    cross_nms: float = 0.9

    def __post_init__(self) -> None:
        if not self.masks or not set(self.masks) <= {0, 1, 2}:
            raise ValueError(f"masks={self.masks}; expected some of 0, 1, 2")
        if not set(self.by_class) <= set(POINT_SOURCES):
            raise ValueError(f"by_class={self.by_class}; expected some of {POINT_SOURCES}")


@dataclass(frozen=True)
class Prompting:
    """How a segmenter is prompted. grid: None for no grid."""

    grid: Grid | None = field(default_factory=Grid)
    clicks: Clicks = field(default_factory=Clicks)


@dataclass(frozen=True)
class _Found:
    """Boxes (n, 4) float64, half-open, of masks that were not empty; dropped: how many were.

    prompts: (n,).  scores, stability: (n,), of their masks.
    """

    prompts: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    stability: np.ndarray
    dropped: int

    def keep(self, rows: np.ndarray) -> "_Found":
        columns = (self.prompts, self.boxes, self.scores, self.stability)
        return _Found(*(column[rows] for column in columns), self.dropped)


def image_proposals(
    segmenter: Segmenter, image: np.ndarray, points: Points, prompting: Prompting
) -> ImageProposals:
    """Proposals of an image, uint8 RGB (H, W, 3), from its grid and its points by source."""
    unknown = sorted(set(points) - set(POINT_SOURCES))
    if unknown:
        raise ValueError(f"points of {unknown}; expected some of {POINT_SOURCES}")
    segmenter.set_image(image)
    parts = []
    if prompting.grid is not None:
        parts.append(grid_proposals(segmenter, image.shape[:2], prompting.grid))
    for source in POINT_SOURCES:
        if source in points:
            parts.append(click_proposals(segmenter, source, *points[source], prompting.clicks))
    return ImageProposals.join(parts)


def grid_points(points_per_side: int, size_hw: tuple[int, int]) -> np.ndarray:
    """Clicks (n * n, 2) x, y, row by row, as SAM's own mask generator places them."""
    at = (np.arange(points_per_side) + 0.5) / points_per_side
    y, x = np.meshgrid(at * size_hw[0], at * size_hw[1], indexing="ij")
    return np.stack([x, y], axis=-1).reshape(-1, 2)


def grid_proposals(segmenter: Segmenter, size_hw: tuple[int, int], grid: Grid) -> ImageProposals:
    """Proposals of the grid on the segmenter's image, best predicted IoU first."""
    found = _masks_to_boxes(segmenter.points(grid_points(grid.points_per_side, size_hw)), (0, 1, 2))
    found = _filtered(found, grid.min_predicted_iou, grid.min_stability)
    # Parity with SamAutomaticMaskGenerator: its IoU is of boxes that end at the last pixel's index.
    corners = torch.from_numpy(found.boxes - [0, 0, 1, 1]).float()
    rows = nms(corners, torch.from_numpy(found.scores), grid.nms).numpy()
    found = found.keep(rows)
    return ImageProposals.of("grid", found.boxes, found.scores, found.dropped)


def click_proposals(
    segmenter: Segmenter, source: str, xy: np.ndarray, classes: np.ndarray, clicks: Clicks
) -> ImageProposals:
    """Proposals of each point alone, then of the points of each class together."""
    prompts = [segmenter.points(xy)]
    if source in clicks.by_class:
        prompts.append(segmenter.points(xy, classes))
    parts = []
    for batches in prompts:
        found = _masks_to_boxes(batches, clicks.masks)
        found = found.keep(np.argsort(found.prompts, kind="stable"))
        found = _filtered(found, clicks.min_predicted_iou, clicks.min_stability)
        parts.append(ImageProposals.of(source, found.boxes, found.scores, found.dropped))
    joined = ImageProposals.join(parts)
    if source != "cross":
        return joined
    rows = ordered_nms(joined.boxes, clicks.cross_nms)
    return ImageProposals.of(source, joined.boxes[rows], joined.scores[rows], joined.dropped)


def _filtered(found: _Found, min_predicted_iou: float, min_stability: float) -> _Found:
    """Those above the first and not below the second; a minimum of 0 leaves all."""
    keep = np.ones(len(found.boxes), bool)
    if min_predicted_iou > 0:
        keep &= found.scores > min_predicted_iou
    if min_stability > 0:
        keep &= found.stability >= min_stability
    return found.keep(keep)


def _masks_to_boxes(batches: Iterable[MaskBatch], wanted: tuple[int, ...]) -> _Found:
    """Boxes of masks `wanted` of each prompt; a network that gives one mask gives that one."""
    columns: list[list[np.ndarray]] = [
        [np.zeros(0, np.int64)],
        [np.zeros((0, 4))],
        [np.zeros(0, np.float32)],
        [np.zeros(0, np.float32)],
    ]
    dropped = 0
    for batch in batches:
        masks = list(wanted) if batch.masks.shape[1] > 1 else [0]
        boxes = mask_boxes(batch.masks)[:, masks].cpu().numpy().reshape(-1, 4)
        full = boxes[:, 2] > 0
        dropped += int((~full).sum())
        values = (
            np.repeat(batch.prompts.cpu().numpy(), len(masks)),
            boxes.astype(np.float64),
            batch.predicted_iou[:, masks].cpu().numpy().reshape(-1),
            batch.stability[:, masks].cpu().numpy().reshape(-1),
        )
        for column, value in zip(columns, values, strict=True):
            column.append(value[full])
    return _Found(*(np.concatenate(column) for column in columns), dropped)
