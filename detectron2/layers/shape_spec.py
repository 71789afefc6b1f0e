"""The shape of a feature map."""

from typing import NamedTuple


class ShapeSpec(NamedTuple):
    """Shape of a feature map, as far as it is known; stride is input pixels per feature cell."""

    channels: int | None = None
    height: int | None = None
    width: int | None = None
    stride: int | None = None
