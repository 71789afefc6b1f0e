"""The shape of a feature map."""

from typing import NamedTuple


class ShapeSpec(NamedTuple):
    """What is known of a feature map's shape; stride is input pixels per feature cell."""

    channels: int | None = None
    height: int | None = None
    width: int | None = None
    stride: int | None = None
