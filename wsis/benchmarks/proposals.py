"""Time WeakSAM's proposals against plain twins, in one run.

The twin of an image's proposals encodes it anew for each set of prompts (grid, single points of
each source, points of each class), as the reference does, and asks prompt by prompt. The twin of
score-free suppression compares each box with the kept ones in a double loop.
"""

import numpy as np

from weaksam.proposals.boxes import ordered_nms
from weaksam.proposals.files import ImageProposals
from weaksam.proposals.prompts import (
    Clicks,
    Grid,
    Points,
    Prompting,
    click_proposals,
    grid_proposals,
    image_proposals,
)
from weaksam.segmenters.protocol import Segmenter
from weaksam.segmenters.spec import load_segmenter
from weaksam.segmenters.tiny_scenes import draw_scene
from wsis.benchmarks.maskrefinenet import Row, best_times

PROPOSALS_SPEED_UP, NMS_SPEED_UP = 3.0, 20.0  # to reach
CLASSES, POINTS_A_CLASS = 3, 4


class OneByOne:
    """A segmenter that answers each prompt alone, after encoding the image for a new set."""

    identity = "one by one"

    def __init__(self, segmenter: Segmenter, image: np.ndarray):
        self._segmenter, self._image = segmenter, image

    def set_image(self, image: np.ndarray) -> None:
        """The image is encoded at every set of prompts."""

    def points(self, xy, groups=None):
        names = np.arange(len(xy)) if groups is None else np.asarray(groups)
        for number, name in enumerate(np.unique(names)):
            if number == 0 or groups is not None:
                self._segmenter.set_image(self._image)
            clicks = np.asarray(xy)[names == name]
            yield from self._segmenter.points(clicks, np.full(len(clicks), name))


def plain_proposals(
    segmenter: Segmenter, image: np.ndarray, points: Points, prompting: Prompting
) -> ImageProposals:
    """The proposals of an image without anything shared between prompts."""
    plain = OneByOne(segmenter, image)
    parts = [grid_proposals(plain, image.shape[:2], prompting.grid)]
    parts += [click_proposals(plain, s, *points[s], prompting.clicks) for s in points]
    return ImageProposals.join(parts)


def plain_nms(boxes: np.ndarray, threshold: float) -> list[int]:
    """Score-free suppression by its definition."""
    rows = boxes.tolist()
    kept: list[int] = []
    for i, (x0, y0, x1, y1) in enumerate(rows):
        for j in kept:
            a0, b0, a1, b1 = rows[j]
            both = max(0.0, min(x1, a1) - max(x0, a0)) * max(0.0, min(y1, b1) - max(y0, b0))
            if both / ((x1 - x0) * (y1 - y0) + (a1 - a0) * (b1 - b0) - both) > threshold:
                break
        else:
            kept.append(i)
    return kept


def random_points(rng: np.random.Generator, size_hw: tuple[int, int]) -> Points:
    """Points of three classes for each source, a class on one part of the image."""
    classes = np.repeat(np.arange(CLASSES), POINTS_A_CLASS)
    height, width = size_hw
    return {
        source: (rng.uniform(0, (width - 1, height - 1), (len(classes), 2)), classes)
        for source in ("coarse", "fine", "cross")
    }


def measure(*, side: int = 160, grid: int = 16, boxes: int = 3000, repeats: int = 3) -> list[Row]:
    """The table; all in one run, with the threads that torch has."""
    rng = np.random.default_rng(0)
    image = draw_scene(rng, side).image
    points = random_points(rng, image.shape[:2])
    prompting = Prompting(Grid(grid), Clicks())
    segmenter = load_segmenter("tiny", device="cpu")
    ours = image_proposals(segmenter, image, points, prompting)
    plain = plain_proposals(segmenter, image, points, prompting)
    slow, fast = best_times(
        repeats,
        lambda: plain_proposals(segmenter, image, points, prompting),
        lambda: image_proposals(segmenter, image, points, prompting),
    )
    same = "the same boxes" if np.array_equal(ours.boxes, plain.boxes) else "other boxes"
    low = rng.uniform(0, 300, (boxes // 2, 2))
    apart = np.concatenate([low, low + rng.uniform(20, 200, (boxes // 2, 2))], axis=1)
    many = rng.permutation(np.concatenate([apart, apart + rng.uniform(-4, 4, apart.shape)]))
    kept = ordered_nms(many, 0.9)
    equal = "the same" if kept.tolist() == plain_nms(many, 0.9) else "OTHERS"
    loop, batched = best_times(
        repeats, lambda: plain_nms(many, 0.9), lambda: ordered_nms(many, 0.9)
    )
    return [
        Row(
            f"proposals of an image, grid {grid}, {CLASSES} classes, {same}",
            f"{slow:.2f} s",
            f"{fast:.2f} s",
            slow / fast,
            f">= {PROPOSALS_SPEED_UP:g}",
            slow / fast >= PROPOSALS_SPEED_UP,
        ),
        Row(
            f"score-free NMS, {boxes} boxes, {len(kept)} kept, {equal}",
            f"{loop * 1e3:.1f} ms",
            f"{batched * 1e3:.1f} ms",
            loop / batched,
            f">= {NMS_SPEED_UP:g}",
            loop / batched >= NMS_SPEED_UP and equal == "the same",
        ),
    ]
