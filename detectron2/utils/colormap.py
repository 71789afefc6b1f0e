"""Distinct colors for drawing instances and classes, and shades of them."""

import colorsys
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colors as mplc

__all__ = ["colormap", "random_color", "random_colors"]

_GOLDEN_RATIO = (5**0.5 - 1) / 2  # multiples of it, modulo 1, spread evenly over the hue circle
_JITTER_LENGTH = 0.5  # in RGB space
_SATURATION_VALUE = ((0.95, 0.95), (0.60, 1.00), (0.95, 0.65))  # neighbors differ in these too
_COLORS = np.array(
    [
        colorsys.hsv_to_rgb(i * _GOLDEN_RATIO % 1, *_SATURATION_VALUE[i % len(_SATURATION_VALUE)])
        for i in range(72)
    ],
    dtype=np.float32,
)


def colormap(rgb: bool = False, maximum: int = 255) -> np.ndarray:
    """All colors: (N, 3) float32 in [0, maximum] (255 or 1), RGB or (by default) BGR."""
    if maximum not in (255, 1):
        raise ValueError(f"maximum={maximum}; expected 255 or 1")
    colors = _COLORS * maximum
    return colors if rgb else colors[:, ::-1]


def random_color(rgb: bool = False, maximum: int = 255) -> np.ndarray:
    """One color of the list, drawn with numpy's generator: (3,) float32 in [0, maximum]."""
    return colormap(rgb, maximum)[np.random.randint(len(_COLORS))]


def random_colors(N: int, rgb: bool = False, maximum: int = 255) -> list[np.ndarray]:  # noqa: N803
    """`N` different colors of the list, drawn with Python's generator."""
    if N > len(_COLORS):
        raise ValueError(f"asked for {N} different colors, there are {len(_COLORS)}")
    return random.sample(list(colormap(rgb, maximum)), N)


def jitter(color: Any) -> tuple[float, ...]:
    """A shade near a matplotlib color, RGB in [0, 1], so that neighbors of one class differ."""
    offset = np.random.uniform(-1, 1, size=3)
    offset *= _JITTER_LENGTH / max(np.linalg.norm(offset), 1e-8)
    return tuple(np.clip(np.asarray(mplc.to_rgb(color)) + offset, 0, 1))


def change_brightness(color: Any, factor: float) -> tuple[float, ...]:
    """A darker (factor from -1) or brighter (up to 1) shade of a matplotlib color, RGB."""
    if not -1 <= factor <= 1:
        raise ValueError(f"{factor=}; expected a number in [-1, 1]")
    rgb, end = np.asarray(mplc.to_rgb(color)), float(factor > 0)
    return tuple(rgb + abs(factor) * (end - rgb))


def readable_on_black(color: Any) -> Sequence[float]:
    """A shade of a matplotlib color that is bright enough on black, RGB in [0, 1]."""
    rgb = np.maximum(mplc.to_rgb(color), 0.35)
    rgb[rgb.argmax()] = max(0.8, rgb.max())
    return rgb
