"""What a module says about the shape of its features."""

from typing import NamedTuple


class ShapeSpec(NamedTuple):
    """Shape of a feature map, as far as it is known; modules connect by it.

    stride is in pixels of the input image per feature cell.
    """

    channels: int | None = None
    height: int | None = None
    width: int | None = None
    stride: int | None = None
