"""The texts of instances and where to write them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .generic_mask import GenericMask

__all__ = ["label_place"]

# Specks get 0.6 of the default font size; above a tenth of the image's size, it is all of it.
_MIN_FONT_FACTOR, _FONT_FACTOR_SLOPE = 0.6, 4.0
_SMALL_BOX = 2.0  # font sizes; the text of a narrower box goes beside it
_POINT_OFFSET = 0.4  # font sizes


def label_place(
    box: np.ndarray | None,
    mask: GenericMask | None,
    point: np.ndarray | None,
    size_hw: tuple[int, int],
    default_font_size: float,
) -> dict[str, Any] | None:
    """Arguments of `Visualizer.draw_text` for the label of an instance; None if it has no place.

    It is at the corner of the box (x0, y0, x1, y1), or without box on the mask, or by the point.
    """
    length = np.sqrt(size_hw[0] * size_hw[1])
    size_ratio, alignment = 0.0, "left"
    if box is not None:
        x0, y0, x1, y1 = box
        is_small = min(x1 - x0, y1 - y0) < _SMALL_BOX * default_font_size
        position = (x1, y0) if is_small and y1 < size_hw[0] else (x0, y0)
        size_ratio = (y1 - y0) / length
    elif mask is not None and mask.area() > 0:
        position, alignment = np.median(mask.mask.nonzero(), axis=1)[::-1], "center"
        size_ratio = np.sqrt(mask.area()) / length
    elif point is not None:
        position = point + _POINT_OFFSET * default_font_size
    else:
        return None
    factor = min(_MIN_FONT_FACTOR + _FONT_FACTOR_SLOPE * size_ratio, 1.0)
    return {
        "position": position,
        "font_size": default_font_size * factor,
        "horizontal_alignment": alignment,
    }


def _create_text_labels(
    classes: Sequence[int] | None,
    scores: Any,
    class_names: Sequence[str] | None,
    is_crowd: Sequence[int] | None = None,
) -> list[str] | None:
    """Texts such as "person 87%" or "person|crowd" from what is known; None if nothing is."""
    labels = None
    if classes is not None:
        labels = [class_names[c] if class_names else str(c) for c in classes]
    if scores is not None:
        percents = [f"{float(score):.0%}" for score in scores]
        pairs = zip(labels or percents, percents, strict=True)
        labels = percents if labels is None else [f"{name} {percent}" for name, percent in pairs]
    if labels is not None and is_crowd is not None:
        pairs = zip(labels, is_crowd, strict=True)
        labels = [f"{label}|crowd" if crowd else label for label, crowd in pairs]
    return labels
