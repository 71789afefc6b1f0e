"""Augmentations that flip, resize, rotate or recolor, and the crops of `augmentation_crop`.

All randomness comes from numpy's global generator; sizes are (height, width).
"""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from fvcore.transforms.transform import (
    BlendTransform,
    HFlipTransform,
    NoOpTransform,
    Transform,
    VFlipTransform,
)
from PIL import Image

from .augmentation import AugInput, Augmentation, _check_choice, _transform_to_aug
from .augmentation_crop import (
    FixedSizeCrop,
    MinIoURandomCrop,
    RandomCrop,
    RandomExtent,
)
from .transform import ResizeTransform, RotationTransform

__all__ = [
    "FixedSizeCrop",
    "MinIoURandomCrop",
    "RandomApply",
    "RandomBrightness",
    "RandomContrast",
    "RandomCrop",
    "RandomExtent",
    "RandomFlip",
    "RandomLighting",
    "RandomRotation",
    "RandomSaturation",
    "Resize",
    "ResizeScale",
    "ResizeShortestEdge",
]

_LUMA_WEIGHTS = (0.299, 0.587, 0.114)  # ITU-R BT.601, red green blue
# Principal components of ImageNet's RGB values (Krizhevsky et al. 2012)
_RGB_EIGENVALUES = np.array([0.2175, 0.0188, 0.0045])
_RGB_EIGENVECTORS = np.array(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
)


class RandomApply(Augmentation):
    """Apply an augmentation (or transform) with probability `prob`."""

    def __init__(self, tfm_or_aug: Augmentation | Transform, prob: float = 0.5):
        assert 0.0 <= prob <= 1.0, f"prob={prob}; expected a probability in [0, 1]"
        self.aug = _transform_to_aug(tfm_or_aug)
        self.prob = prob

    def get_transform(self, *args: object) -> Transform:
        return self.aug.get_transform(*args) if self._is_chosen() else NoOpTransform()

    def __call__(self, aug_input: AugInput) -> Transform:
        # not the base class's: the wrapped augmentation names its own inputs
        return self.aug(aug_input) if self._is_chosen() else NoOpTransform()

    def _is_chosen(self) -> bool:
        return self._rand_range() < self.prob


class RandomFlip(Augmentation):
    """Flip horizontally or vertically with probability `prob`."""

    def __init__(self, prob: float = 0.5, *, horizontal: bool = True, vertical: bool = False):
        if horizontal == vertical:
            raise ValueError(
                f"horizontal={horizontal}, vertical={vertical}: set exactly one of them; for both, "
                "use two RandomFlip"
            )
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        height, width = image.shape[:2]
        if self._rand_range() >= self.prob:
            return NoOpTransform()
        return HFlipTransform(width) if self.horizontal else VFlipTransform(height)


class Resize(Augmentation):
    """Resize to a fixed size."""

    def __init__(self, shape: int | tuple[int, int], interp: int = Image.BILINEAR):
        """shape: (height, width), or one number for both."""
        shape = (shape, shape) if isinstance(shape, int) else tuple(shape)
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        return ResizeTransform(*image.shape[:2], *self.shape, self.interp)


class ResizeShortestEdge(Augmentation):
    """Resize the shorter edge to a random length, the longer one to at most `max_size`."""

    def __init__(
        self,
        short_edge_length: int | Sequence[int],
        max_size: int = sys.maxsize,
        sample_style: str = "range",
        interp: int = Image.BILINEAR,
    ):
        """
        Args:
            short_edge_length: one length; or [min, max] for style "range", a list for "choice".
            sample_style: "range" draws uniformly from [min, max], "choice" one of the list.
        """
        _check_choice("sample_style", sample_style, ("range", "choice"))
        self.is_range = sample_style == "range"
        if isinstance(short_edge_length, int):
            short_edge_length = (short_edge_length, short_edge_length)
        if self.is_range and len(short_edge_length) != 2:
            raise ValueError(
                f"short_edge_length={short_edge_length}: sample_style 'range' takes [min, max]; "
                "use sample_style='choice' for a list of lengths"
            )
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        lengths, size = self.short_edge_length, image.shape[:2]
        if self.is_range:
            length = np.random.randint(lengths[0], lengths[1] + 1)
        else:
            length = np.random.choice(lengths)
        if not length:  # 0 in a config turns resizing off
            return NoOpTransform()
        new_size = self.get_output_shape(*size, length, self.max_size)
        return ResizeTransform(*size, *new_size, self.interp)

    @staticmethod
    def get_output_shape(
        oldh: int, oldw: int, short_edge_length: int, max_size: int
    ) -> tuple[int, int]:
        """Height and width after resizing; the aspect ratio is kept up to rounding."""
        short = float(short_edge_length)
        long = max(oldh, oldw) * (short / min(oldh, oldw))
        if max(short, long) > max_size:
            shrink = max_size / max(short, long)
            short, long = short * shrink, long * shrink
        new_size = int(short + 0.5), int(long + 0.5)
        return new_size if oldh < oldw else new_size[::-1]


class ResizeScale(Augmentation):
    """Fit the image into the target size times a random scale, keeping its aspect ratio."""

    def __init__(
        self,
        min_scale: float,
        max_scale: float,
        target_height: int,
        target_width: int,
        interp: int = Image.BILINEAR,
    ):
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        scale = np.random.uniform(self.min_scale, self.max_scale)
        size = np.array(image.shape[:2])
        target = np.multiply((self.target_height, self.target_width), scale)
        new_size = np.maximum(np.round(size * (target / size).min()).astype(int), 1)
        return ResizeTransform(*map(int, size), *map(int, new_size), self.interp)


class RandomRotation(Augmentation):
    """Rotate by a random angle about a random center."""

    def __init__(
        self,
        angle: float | Sequence[float],
        expand: bool = True,
        center: Sequence[Sequence[float]] | None = None,
        sample_style: str = "range",
        interp: int | None = None,
    ):
        """
        Args:
            angle: degrees; [min, max] for style "range", a list for "choice".
            expand: make the output large enough for the whole rotated image.
            center: [[min x, min y], [max x, max y]] for "range", a list of [x, y] for "choice", in
                [0, 1] of the image's size; None: the image's center.
        """
        _check_choice("sample_style", sample_style, ("range", "choice"))
        self.is_range = sample_style == "range"
        if isinstance(angle, (int, float)):
            angle = (angle, angle)
        if center is not None and np.ndim(center) == 1:
            center = (center, center)
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        height, width = image.shape[:2]
        angle = self._draw(self.angle)
        center = None
        if self.center is not None:
            center = tuple(np.multiply(self._draw(self.center), (width, height)))
        if angle % 360 == 0:
            return NoOpTransform()
        return RotationTransform(height, width, angle, self.expand, center, self.interp)

    def _draw(self, choices: Sequence) -> Any:
        """A number or vector between the two choices, or one of them, as the style says."""
        if self.is_range:
            return np.random.uniform(choices[0], choices[1])
        return choices[np.random.choice(len(choices))]


class _RandomIntensity(Augmentation):
    """Blend w * image + (1 - w) * other image, with w from [intensity_min, intensity_max]."""

    def __init__(self, intensity_min: float, intensity_max: float):
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        weight = np.random.uniform(self.intensity_min, self.intensity_max)
        return BlendTransform(self._other_image(image), src_weight=1 - weight, dst_weight=weight)

    def _other_image(self, image: np.ndarray) -> np.ndarray | float:
        raise NotImplementedError(f"{type(self).__name__} must define _other_image()")


class RandomContrast(_RandomIntensity):
    """Change the contrast: blend with the image's mean gray."""

    def _other_image(self, image: np.ndarray) -> float:
        return image.mean()


class RandomBrightness(_RandomIntensity):
    """Change the brightness: blend with black."""

    def _other_image(self, image: np.ndarray) -> float:
        return 0


class RandomSaturation(_RandomIntensity):
    """Change the saturation of an RGB image: blend with its gray version."""

    def _other_image(self, image: np.ndarray) -> np.ndarray:
        if image.shape[2:] != (3,):
            raise ValueError(f"RandomSaturation needs an RGB image (H, W, 3), got {image.shape}")
        return image.dot(_LUMA_WEIGHTS)[:, :, np.newaxis]


class RandomLighting(Augmentation):
    """Add random amounts of ImageNet's three principal color components to an RGB image."""

    def __init__(self, scale: float):
        """scale: standard deviation of the amounts, in the image's own unit."""
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        if image.shape[2:] != (3,):
            raise ValueError(f"RandomLighting needs an RGB image (H, W, 3), got {image.shape}")
        weights = np.random.normal(scale=self.scale, size=3)
        shift = _RGB_EIGENVECTORS.dot(weights * _RGB_EIGENVALUES)
        return BlendTransform(shift, src_weight=1.0, dst_weight=1.0)
