"""Peaks of a map: the points that prompt a segmenter."""

from dataclasses import dataclass

import cv2
import numpy as np


@dataclass(frozen=True)
class PeakSettings:
    """How peaks are picked.

    kernel: odd side of the window in which a peak is the largest, pixels.
    threshold: least value of a peak, of a map in 0 to 1.
    most: candidates that are looked at, from the highest one.
    """

    kernel: int = 17
    threshold: float = 0.9
    most: int = 25

    def __post_init__(self) -> None:
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"kernel={self.kernel}; expected an odd number of pixels")
        if not 0 < self.threshold <= 1 or self.most < 1:
            raise ValueError(f"threshold={self.threshold}, most={self.most}; expected (0, 1], >= 1")


def normalize_map(values: np.ndarray) -> np.ndarray:
    """(H, W) stretched to 0 to 1; a map of one value becomes 0 everywhere."""
    low, high = values.min(), values.max()
    return (values - low) / (high - low + np.float32(1e-8))


def find_peaks(values: np.ndarray, settings: PeakSettings) -> tuple[np.ndarray, np.ndarray]:
    """Peaks of a map (H, W) in 0 to 1, in descending order.

    A peak is no smaller than any value of its window. Equal ones come in (row, column) order. One
    that is nearer than half a window (L1 distance) to a peak already taken is left out.

    Returns: xy (P, 2) float32 pixel indices, scores (P,) float32; P may be 0.
    """
    values = np.ascontiguousarray(values, np.float32)
    # OpenCV's border for dilation is lower than anything; it goes over rows, then columns.
    highest = cv2.dilate(values, np.ones((settings.kernel, settings.kernel), np.uint8))
    ys, xs = np.nonzero((values == highest) & (values >= settings.threshold))
    order = np.argsort(-values[ys, xs], kind="stable")[: settings.most]
    radius = (settings.kernel - 1) // 2
    kept: list[int] = []
    for i in order:
        near = (abs(xs[i] - xs[j]) + abs(ys[i] - ys[j]) < radius for j in kept)
        if not any(near):
            kept.append(i)
    xy = np.stack([xs[kept], ys[kept]], axis=1).astype(np.float32).reshape(-1, 2)
    return xy, values[ys[kept], xs[kept]]
