"""Crop an instance from its image: the box, and the network's input.

All boxes are inclusive pixel bounds (x0, y0, x1, y1) of the original image, in training and in
refinement alike; points are (x, y) in the same frame, and a pixel's own coordinate is its index.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np

IMAGE_MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32)  # RGB, of ImageNet
IMAGE_STD = np.array([0.229, 0.224, 0.225], dtype=np.float32)
POINT_BOX_SIDE = 64  # pixels; side of the box around the point where the prior mask is empty


@dataclass(frozen=True)
class CropBox:
    """Inclusive pixel bounds inside an image; never empty."""

    x0: int
    y0: int
    x1: int
    y1: int

    @property
    def width(self) -> int:
        return self.x1 - self.x0 + 1

    @property
    def height(self) -> int:
        return self.y1 - self.y0 + 1

    def of(self, array: np.ndarray) -> np.ndarray:
        """The view of an (H, W, ...) array inside the box."""
        return array[self.y0 : self.y1 + 1, self.x0 : self.x1 + 1]


def mask_bounds(mask: np.ndarray) -> CropBox | None:
    """Tight bounds of an (H, W) mask; None where it is empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows) == 0:
        return None
    return CropBox(int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1]))


def crop_box(mask: np.ndarray, point_xy: tuple[float, float], box_scale: float) -> CropBox:
    """The box around a prior mask, scaled about its center, widened to its point, clipped.

    Where the point lies outside the scaled box, that side moves to half the scaled size beyond
    the point. A side of one pixel counts as two (its scaled size would be nothing); an empty mask
    counts as a box of `POINT_BOX_SIDE` pixels around the point.

    Args:
        mask: (H, W) prior mask.
        point_xy: labeled point; one outside the image counts as the nearest pixel inside.
        box_scale: ratio of the crop's sides to those of the mask's box.
    """
    height, width = mask.shape
    x, y = min(max(point_xy[0], 0), width - 1), min(max(point_xy[1], 0), height - 1)
    bounds = mask_bounds(mask)
    if bounds is None:
        half = POINT_BOX_SIDE / 2
        spans = ((x - half, x + half), (y - half, y + half))
        box_scale = 1
    else:
        spans = ((bounds.x0, bounds.x1), (bounds.y0, bounds.y1))
    x0, x1 = _scaled_side(*spans[0], x, box_scale, width)
    y0, y1 = _scaled_side(*spans[1], y, box_scale, height)
    return CropBox(x0, y0, x1, y1)


def _scaled_side(
    low: float, high: float, point: float, box_scale: float, size: int
) -> tuple[int, int]:
    """One axis of `crop_box`: inclusive bounds in [0, size)."""
    center = (low + high) / 2
    half = box_scale * max(high - low, 1) / 2
    low, high = center - half, center + half
    if point < low:
        low = point - half
    elif point > high:
        high = point + half
    return max(math.floor(low), 0), min(math.floor(high), size - 1)


def resize_image(image: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Bilinear: (h, w, 3) uint8 -> (H, W, 3) float32, still 0..255 but not rounded."""
    return cv2.resize(
        image.astype(np.float32), (size_hw[1], size_hw[0]), interpolation=cv2.INTER_LINEAR
    )


def resize_mask(mask: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Nearest: (h, w) bool or uint8 -> (H, W) uint8."""
    return cv2.resize(
        np.ascontiguousarray(mask, dtype=np.uint8),
        (size_hw[1], size_hw[0]),
        interpolation=cv2.INTER_NEAREST,
    )


def point_in_crop(
    point_xy: tuple[float, float], box: CropBox, size_hw: tuple[int, int]
) -> tuple[int, int]:
    """The pixel of the resized crop that holds a point of the image."""
    x = math.floor((point_xy[0] - box.x0) * size_hw[1] / box.width)
    y = math.floor((point_xy[1] - box.y0) * size_hw[0] / box.height)
    return min(max(x, 0), size_hw[1] - 1), min(max(y, 0), size_hw[0] - 1)


def network_input(image: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """The four dense channels that the network reads.

    Args:
        image: (H, W, 3) RGB, 0..255, float32.
        prior: (H, W) mask, 0 or 1.

    Returns:
        (4, H, W) float32: image normalized by ImageNet's mean and standard deviation, prior mask.
    """
    result = np.empty((4, *image.shape[:2]), dtype=np.float32)
    result[:3] = ((image / 255 - IMAGE_MEAN) / IMAGE_STD).transpose(2, 0, 1)
    result[3] = prior
    return result
