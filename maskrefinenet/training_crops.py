"""From the crop of a training sample to the network's square: resize, center, mirror.

This is the geometry of training alone; `refiner.prepare` has that of refinement.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from .crops import CropBox, resize_image, resize_mask

NO_POINT = (-1, -1)  # outside the input: no Gaussian is drawn


def scaled_size(crop_hw: tuple[int, int], size: int, scale: float, rule: str) -> tuple[int, int]:
    """Height and width of a whole crop once resized.

    Args:
        size: side of the network's square.  scale: of the augmentation.
        rule: "square", or "aspect": the short side becomes `size`, then both are scaled. Either
            step rounds down, as in the reference (found by its recorded samples).
    """
    if rule == "square":
        side = max(1, round(size * scale))
        return side, side
    shorter = min(crop_hw)
    height, width = (max(1, int(size * length // shorter * scale)) for length in crop_hw)
    return height, width


@dataclass(frozen=True)
class TrainingCrop:
    """How one sample is laid out.

    box: in the image.  scaled_hw: the whole box, resized.  size: side of the square that its
    center fills, cut or zero padded.  rule, resampling: as of a recipe.
    """

    box: CropBox
    scaled_hw: tuple[int, int]
    size: int
    rule: str
    resampling: str

    def image(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 of the whole image -> (S, S, 3) float32, 0..255."""
        crop = self.box.of(image)
        if self.resampling == "pillow":
            resized = _pillow(crop, self.scaled_hw, Image.Resampling.BILINEAR)
        else:
            resized = resize_image(crop, self.scaled_hw)
        return self._center(resized).astype(np.float32, copy=False)

    def mask(self, mask: np.ndarray) -> np.ndarray:
        """(H, W) of the whole image -> (S, S) uint8."""
        crop = self.box.of(mask)
        if self.resampling == "pillow":
            return self._center(_pillow(crop, self.scaled_hw, Image.Resampling.NEAREST))
        return self._center(resize_mask(crop, self.scaled_hw))

    def point(self, point_xy: tuple[float, float]) -> tuple[int, int]:
        """The pixel of the square on which a point of the image falls; NO_POINT outside it."""
        box, (height, width) = self.box, self.scaled_hw
        x = int((point_xy[0] - box.x0) * width / box.width) + (self.size - width) // 2
        y = int((point_xy[1] - box.y0) * height / box.height) + (self.size - height) // 2
        return (x, y) if 0 <= x < self.size and 0 <= y < self.size else NO_POINT

    def _offset(self, axis: int) -> tuple[int, int]:
        """Pixels cut off at the beginning of an axis, and pixels of padding there."""
        spare = self.scaled_hw[axis] - self.size
        # Upstream parity: an odd rest is cut half to even; ours cuts less at the beginning.
        cut = round(spare / 2) if self.rule == "aspect" else spare // 2
        return max(cut, 0), max(-spare, 0) // 2

    def _center(self, array: np.ndarray) -> np.ndarray:
        result = np.zeros((self.size, self.size, *array.shape[2:]), dtype=array.dtype)
        (top, below), (left, right) = self._offset(0), self._offset(1)
        inside = array[top : top + self.size, left : left + self.size]
        height, width = inside.shape[:2]
        result[below : below + height, right : right + width] = inside
        return result


def _pillow(array: np.ndarray, size_hw: tuple[int, int], how: Image.Resampling) -> np.ndarray:
    """(h, w, ...) uint8 resized by Pillow."""
    image = Image.fromarray(np.ascontiguousarray(array, dtype=np.uint8))
    return np.asarray(image.resize((size_hw[1], size_hw[0]), how))
