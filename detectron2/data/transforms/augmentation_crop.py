"""Augmentations that take a part of the image; sizes are (height, width).

All randomness comes from numpy's global generator.
"""

import numpy as np
from fvcore.transforms.transform import NoOpTransform, Transform, TransformList

from .augmentation import Augmentation, _check_choice
from .transform import CropTransform, ExtentTransform, PadTransform

_CROP_TYPES = ("relative_range", "relative", "absolute", "absolute_range")
_ASPECT_RATIO_LIMITS = (0.5, 2.0)  # height / width of a `MinIoURandomCrop`


class FixedSizeCrop(Augmentation):
    """Crop larger images to `crop_size` at a random place, and pad smaller ones right and below."""

    def __init__(self, crop_size: tuple[int, int], pad: bool = True, pad_value: float = 128.0):
        """pad: False leaves smaller images as they are; pad_value: of images; label maps get 0."""
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> TransformList:
        size, target = np.array(image.shape[:2]), np.array(self.crop_size)
        room = np.maximum(size - target, 0)
        # Upstream parity: one random number for both axes
        top, left = np.round(room * np.random.uniform(0.0, 1.0)).astype(int).tolist()
        (height, width), (crop_h, crop_w) = size.tolist(), target.tolist()
        transforms = [CropTransform(left, top, crop_w, crop_h, width, height)]
        if self.pad:
            below, right = np.maximum(target - size, 0).tolist()
            kept_h, kept_w = np.minimum(size, target).tolist()
            transforms.append(PadTransform(0, 0, right, below, kept_w, kept_h, self.pad_value))
        return TransformList(transforms)


class RandomCrop(Augmentation):
    """Crop a rectangle of random or fixed size at a random place."""

    def __init__(self, crop_type: str, crop_size: tuple[float, float] | tuple[int, int]):
        """
        Args:
            crop_type: what `crop_size` means:
                "relative": (height, width) as fractions of the image;
                "relative_range": the same, each drawn from [given, 1];
                "absolute": pixels, at most the image's size;
                "absolute_range": (min, max) pixels, from which height and width are drawn.
        """
        _check_choice("crop_type", crop_type, _CROP_TYPES)
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        height, width = image.shape[:2]
        crop_h, crop_w = self.get_crop_size((height, width))
        if not (0 < crop_h <= height and 0 < crop_w <= width):
            raise ValueError(
                f"{self} crops an image of {height} x {width} to {crop_h} x {crop_w}: crop_size "
                "must lie in (0, 1] for relative crops, and above 0 for absolute ones"
            )
        top = np.random.randint(height - crop_h + 1)
        left = np.random.randint(width - crop_w + 1)
        return CropTransform(left, top, crop_w, crop_h, width, height)

    def get_crop_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of a crop from an image of (height, width)."""
        if self.crop_type == "absolute":
            return tuple(map(min, self.crop_size, image_size))
        if self.crop_type == "absolute_range":
            low, high = self.crop_size
            if low > high:
                raise ValueError(f"crop_size={self.crop_size}: 'absolute_range' takes (min, max)")
            ranges = [(min(side, low), min(side, high) + 1) for side in image_size]
            return tuple(np.random.randint(*bounds) for bounds in ranges)
        shares = np.asarray(self.crop_size, dtype=np.float32)
        if self.crop_type == "relative_range":
            shares = shares + np.random.rand(2) * (1 - shares)
        return tuple(int(n * share + 0.5) for n, share in zip(image_size, shares, strict=True))


class RandomExtent(Augmentation):
    """Take a randomly scaled and shifted rectangle of the image; it is 0 outside the image."""

    def __init__(self, scale_range: tuple[float, float], shift_range: tuple[float, float]):
        """
        Args:
            scale_range: smallest and largest size of the rectangle, relative to the image.
            shift_range: x and y range of the shift of its center, relative to the image's size;
                each shift is drawn from [-range / 2, range / 2].
        """
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        height, width = image.shape[:2]
        scale = np.random.uniform(*self.scale_range)
        shift_x = self.shift_range[0] * (np.random.rand() - 0.5)
        shift_y = self.shift_range[1] * (np.random.rand() - 0.5)
        x0, x1 = (width * (0.5 + shift_x + side * 0.5 * scale) for side in (-1, 1))
        y0, y1 = (height * (0.5 + shift_y + side * 0.5 * scale) for side in (-1, 1))
        return ExtentTransform((x0, y0, x1, y1), (int(y1 - y0), int(x1 - x0)))


class MinIoURandomCrop(Augmentation):
    """SSD's crop: every box must overlap it by at least a randomly chosen IoU."""

    def __init__(
        self,
        min_ious: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9),
        min_crop_size: float = 0.3,
        mode_trials: int = 1000,
        crop_trials: int = 50,
    ):
        """
        Args:
            min_ious: the IoUs to choose from, in addition to 0 (any crop) and 1 (no crop).
            min_crop_size: minimum height and width of the crop, relative to the image.
            mode_trials, crop_trials: how many IoUs, and crops for each, to try.
        """
        self.sample_mode = (1, *min_ious, 0)
        self._init(locals())

    def get_transform(self, image: np.ndarray, boxes: np.ndarray) -> Transform:
        """boxes: (N, 4), x0, y0, x1, y1 in pixels."""
        height, width = image.shape[:2]
        boxes = np.asarray(boxes, dtype=float).reshape(-1, 4)
        for _ in range(self.mode_trials):
            min_iou = np.random.choice(self.sample_mode)
            if min_iou == 1:
                break
            for _ in range(self.crop_trials):
                crop_h, crop_w = np.random.uniform(self.min_crop_size, 1, 2) * (height, width)
                low, high = _ASPECT_RATIO_LIMITS
                if not low <= crop_h / crop_w <= high:
                    continue
                left, top = np.random.uniform(0, (width - crop_w, height - crop_h))
                x0, y0, x1, y1 = (int(v) for v in (left, top, left + crop_w, top + crop_h))
                if x1 > x0 and y1 > y0 and _crop_fits(boxes, (x0, y0, x1, y1), min_iou):
                    return CropTransform(x0, y0, x1 - x0, y1 - y0, width, height)
        return NoOpTransform()


def _crop_fits(boxes: np.ndarray, crop: tuple[int, int, int, int], min_iou: float) -> bool:
    """Whether every box has the IoU with the crop and at least one has its center inside."""
    if len(boxes) == 0:
        return True
    crop_low, crop_high = np.array(crop[:2]), np.array(crop[2:])
    low, high = np.maximum(boxes[:, :2], crop_low), np.minimum(boxes[:, 2:], crop_high)
    overlap = np.clip(high - low, 0, None).prod(axis=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    iou = overlap / (areas + (crop_high - crop_low).prod() - overlap)
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    is_inside = ((centers > crop_low) & (centers < crop_high)).all(axis=1)
    return bool(iou.min() >= min_iou and is_inside.any())
