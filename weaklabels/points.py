"""Labeled points: what makes a valid one, and the rules by which a mask gets one.

Points are (x, y) in pixel indices of the image.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from weaklabels.masks import Runs, drawable_polygons, is_finite_number, segmentation_rle

PointRule = Callable[[Runs, np.random.Generator], tuple[float, float]]


def checked_point(point: Any, height: int, width: int) -> tuple[float, float]:
    """`point` as two floats from 0 to the image's width and height.

    Raises:
        ValueError: "fault: detail", where it is not such a point.
    """
    _check_pair(point)
    x, y = point
    size = f"the image of width {width}, height {height}"
    if not all(map(is_finite_number, point)):
        raise ValueError(f"point is not finite, so outside {size}: {point}")
    if not (0 <= x <= width and 0 <= y <= height):
        raise ValueError(f"point is outside {size}: {point}")
    return float(x), float(y)


def finite_point(point: Any) -> tuple[float, float]:
    """`point` as two finite floats; it may lie outside the image, as points of networks do."""
    _check_pair(point)
    if not all(map(is_finite_number, point)):
        raise ValueError(f"point is not finite: {point}")
    return float(point[0]), float(point[1])


def _check_pair(point: Any) -> None:
    pair = isinstance(point, list | tuple) and len(point) == 2
    if not pair or not all(type(value) in (int, float) for value in point):
        raise ValueError(f"point is not [x, y] in pixels: {point!r}")


def mask_point(
    segmentation: Any, height: int, width: int, rule: PointRule, rng: np.random.Generator
) -> tuple[float, float]:
    """A point inside the image for a mask, by `rule`; ValueError where there can be none."""
    runs = Runs.of(segmentation_rle(segmentation, height, width))
    if runs.area:
        x, y = rule(runs, rng)
        return min(max(x, 0.0), width - 1.0), min(max(y, 0.0), height - 1.0)
    if isinstance(segmentation, list):  # too thin to cover the middle of a pixel
        polygons = drawable_polygons(segmentation, height, width)
        corners = np.concatenate(polygons).reshape(-1, 2)
        x, y = checked_point((corners.mean(axis=0) - 0.5).tolist(), height, width)
        return min(x, width - 1.0), min(y, height - 1.0)
    raise ValueError("an empty mask has no point")


def centroid(runs: Runs, rng: np.random.Generator) -> tuple[float, float]:
    """The center of mass; it may lie in a hole or beside the mask."""
    return runs.center_of_mass()


def inside(runs: Runs, rng: np.random.Generator) -> tuple[float, float]:
    """The center of mass, moved to the nearest mask pixel where it is not in the mask."""
    x, y = runs.center_of_mass()
    # Readers differ in how they find a point's pixel; either way must hit the mask.
    if runs.holds(int(x), int(y)) and runs.holds(round(x), round(y)):
        return x, y
    return runs.nearest_pixel(x, y)


def random_pixel(runs: Runs, rng: np.random.Generator) -> tuple[float, float]:
    """Any pixel of the mask, all with the same chance."""
    return runs.pixel(int(rng.integers(runs.area)))


def jitter(sigma: float) -> PointRule:
    """The center of mass with normal noise of `sigma` pixels in x and in y."""

    def noisy(runs: Runs, rng: np.random.Generator) -> tuple[float, float]:
        x, y = np.array(runs.center_of_mass()) + sigma * rng.standard_normal(2)
        return float(x), float(y)

    return noisy


POINT_RULES: dict[str, PointRule] = {"centroid": centroid, "inside": inside, "random": random_pixel}


def point_rule(text: str) -> PointRule:
    """The rule that a text names: one of `POINT_RULES`, or jitter:SIGMA.

    Raises:
        ValueError: it names none.
    """
    if text in POINT_RULES:
        return POINT_RULES[text]
    name, _, number = text.partition(":")
    try:
        sigma = float(number) if name == "jitter" else math.nan
    except ValueError:
        sigma = math.nan
    if not (math.isfinite(sigma) and sigma >= 0):
        raise ValueError(
            f"point rule {text!r}: expected one of {', '.join(POINT_RULES)}, or jitter:SIGMA "
            "(pixels, such as jitter:5)"
        )
    return jitter(sigma)
