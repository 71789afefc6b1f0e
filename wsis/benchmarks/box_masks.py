"""Time the masks of an image's boxes against one box at a time, in one run.

    python -m wsis.benchmarks.box_masks

The twin asks for the mask of each box by itself, about an image that it encodes for each, as a
program does that goes through a list of boxes. The masks are those of the batch. (About an image
that is encoded once, single boxes take about three times as long as the batch.)
"""

import sys
from collections.abc import Sequence

import numpy as np
import torch

from weaksam.box_masks import box_masks
from weaksam.segmenters.protocol import Segmenter
from weaksam.segmenters.spec import load_segmenter
from weaksam.segmenters.tiny_scenes import draw_scene
from wsis.benchmarks.maskrefinenet import Row, best_times, print_rows

SPEED_UP = 3.0  # to reach


def batched(segmenter: Segmenter, image: np.ndarray, boxes: np.ndarray) -> list[np.ndarray]:
    """The masks of the boxes, in their order."""
    found = {row: mask for row, mask, _ in box_masks(segmenter, image, boxes)}
    return [found[row] for row in range(len(boxes))]


def one_by_one(segmenter: Segmenter, image: np.ndarray, boxes: np.ndarray) -> list[np.ndarray]:
    """The same, each box by itself."""
    return [mask for box in boxes for _, mask, _ in box_masks(segmenter, image, box[None])]


def random_boxes(rng: np.random.Generator, count: int, size_hw: tuple[int, int]) -> np.ndarray:
    """(N, 4) half-open boxes of 20 pixels or more inside the image."""
    size = np.array(size_hw[::-1])
    low = rng.uniform(0, size - 20, (count, 2))
    return np.concatenate([low, low + 20 + rng.uniform(0, 1, (count, 2)) * (size - 20 - low)], 1)


def measure(*, side: int = 160, boxes: int = 20, repeats: int = 5) -> list[Row]:
    """The table; with the threads that torch has."""
    rng = np.random.default_rng(0)
    image = draw_scene(rng, side).image
    wanted = random_boxes(rng, boxes, image.shape[:2])
    segmenter = load_segmenter("tiny", device="cpu")
    pairs = zip(
        batched(segmenter, image, wanted), one_by_one(segmenter, image, wanted), strict=True
    )
    same = "the same masks" if all((a == b).all() for a, b in pairs) else "OTHER MASKS"
    slow, fast = best_times(
        repeats,
        lambda: one_by_one(segmenter, image, wanted),
        lambda: batched(segmenter, image, wanted),
    )
    return [
        Row(
            f"masks of {boxes} boxes, {side} pixels, tiny, {same}",
            f"{slow:.2f} s",
            f"{fast:.2f} s",
            slow / fast,
            f">= {SPEED_UP:g}",
            slow / fast >= SPEED_UP and same == "the same masks",
        )
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; 1 where a figure misses its target."""
    torch.set_num_threads(2)
    return print_rows(measure())


if __name__ == "__main__":
    sys.exit(main())
