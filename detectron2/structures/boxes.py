"""Axis-aligned boxes: storage formats, a container for N boxes, and pairwise geometry.

A box is (x0, y0, x1, y1) in absolute pixels with continuous coordinates: pixel column j covers
[j, j + 1), so the width is x1 - x0.
"""

import math
from collections.abc import Iterator
from enum import IntEnum, unique
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

RawBoxes = TypeVar("RawBoxes", list, tuple, np.ndarray, Tensor)


@unique
class BoxMode(IntEnum):
    """The format of a box; the values are part of file formats.

    ABS modes are in pixels, REL modes in fractions of the image size. XYWHA_ABS is (center x,
    center y, width, height, angle in degrees, counterclockwise).
    """

    XYXY_ABS = 0
    XYWH_ABS = 1
    XYXY_REL = 2
    XYWH_REL = 3
    XYWHA_ABS = 4

    @staticmethod
    def convert(box: RawBoxes, from_mode: "BoxMode", to_mode: "BoxMode") -> RawBoxes:
        """The boxes in another absolute mode, as a new object of the input's type and dtype.

        A rotated box becomes the smallest axis-aligned box around it. Equal modes return `box`.

        Args:
            box: one box as a list or tuple, or (N, 4) / (N, 5) boxes as an array or tensor.
        """
        from_mode, to_mode = BoxMode(from_mode), BoxMode(to_mode)
        if from_mode == to_mode:
            return box
        if not {from_mode, to_mode} <= _TO_CORNERS.keys():
            raise ValueError(
                f"cannot convert boxes from {from_mode.name} to {to_mode.name}: both modes must be "
                "absolute; scale relative boxes by the image size first"
            )
        length = 5 if from_mode == BoxMode.XYWHA_ABS else 4
        is_sequence = isinstance(box, list | tuple)
        if is_sequence and (len(box) != length or any(isinstance(v, list | tuple) for v in box)):
            raise ValueError(f"one {from_mode.name} box has {length} numbers, got {box!r}")
        boxes = torch.as_tensor(box)
        if boxes.shape[-1] != length:
            raise ValueError(
                f"{from_mode.name} boxes have {length} columns, got shape {tuple(boxes.shape)}"
            )
        # Rotation needs more precision than an integer or half type has.
        columns = _TO_CORNERS[from_mode](*boxes.double().unbind(dim=-1))
        result = torch.stack(_FROM_CORNERS[to_mode](*columns), dim=-1).to(dtype=boxes.dtype)
        if is_sequence:
            return type(box)(result.tolist())
        return result.numpy() if isinstance(box, np.ndarray) else result


def _rotated_to_corners(
    x: Tensor, y: Tensor, width: Tensor, height: Tensor, angle: Tensor
) -> tuple[Tensor, ...]:
    cosine = torch.cos(angle * (math.pi / 180)).abs()
    sine = torch.sin(angle * (math.pi / 180)).abs()
    half_width = (cosine * width + sine * height) / 2
    half_height = (cosine * height + sine * width) / 2
    return x - half_width, y - half_height, x + half_width, y + half_height


_TO_CORNERS = {
    BoxMode.XYXY_ABS: lambda x0, y0, x1, y1: (x0, y0, x1, y1),
    BoxMode.XYWH_ABS: lambda x, y, w, h: (x, y, x + w, y + h),
    BoxMode.XYWHA_ABS: _rotated_to_corners,
}
_FROM_CORNERS = {
    BoxMode.XYXY_ABS: lambda x0, y0, x1, y1: (x0, y0, x1, y1),
    BoxMode.XYWH_ABS: lambda x0, y0, x1, y1: (x0, y0, x1 - x0, y1 - y0),
    BoxMode.XYWHA_ABS: lambda x0, y0, x1, y1: (
        (x0 + x1) / 2,
        (y0 + y1) / 2,
        x1 - x0,
        y1 - y0,
        torch.zeros_like(x0),
    ),
}


class Boxes:
    """N boxes as one (N, 4) float32 `tensor`; `clip` and `scale` work in place."""

    def __init__(self, tensor: Tensor):
        """tensor: (N, 4) numbers in any form that torch takes; empty input makes (0, 4)."""
        if not isinstance(tensor, Tensor):
            tensor = torch.as_tensor(tensor, dtype=torch.float32, device=torch.device("cpu"))
        tensor = tensor.to(torch.float32)
        if tensor.numel() == 0:
            tensor = tensor.reshape(0, 4)
        if tensor.dim() != 2 or tensor.size(-1) != 4:
            raise ValueError(f"boxes must have shape (N, 4), got {tuple(tensor.shape)}")
        self.tensor = tensor

    def clone(self) -> "Boxes":
        return Boxes(self.tensor.clone())

    def to(self, device: torch.device | str) -> "Boxes":
        return Boxes(self.tensor.to(device=device))

    def area(self) -> Tensor:
        """(N,) areas in square pixels."""
        width, height = (self.tensor[:, 2:] - self.tensor[:, :2]).unbind(dim=1)
        return width * height

    def clip(self, box_size: tuple[int, int]) -> None:
        """Move coordinates outside an image of `box_size` (height, width) to its border."""
        if not torch.isfinite(self.tensor).all():
            raise ValueError("cannot clip boxes with infinite or NaN coordinates")
        height, width = box_size
        x = self.tensor[:, 0::2].clamp(min=0, max=width)
        y = self.tensor[:, 1::2].clamp(min=0, max=height)
        # A new tensor, since the constructor may share memory with its argument.
        self.tensor = torch.stack((x[:, 0], y[:, 0], x[:, 1], y[:, 1]), dim=-1)

    def nonempty(self, threshold: float = 0.0) -> Tensor:
        """(N,) bool: whether both sides are longer than `threshold` pixels."""
        return (self.tensor[:, 2:] - self.tensor[:, :2] > threshold).all(dim=1)

    def __getitem__(self, item: int | slice | Tensor) -> "Boxes":
        """The chosen boxes; an int gives one box, (1, 4). May share memory with this object."""
        if isinstance(item, int):
            return Boxes(self.tensor[item].view(1, -1))
        chosen = self.tensor[item]
        if chosen.dim() != 2:
            raise ValueError(
                f"indexing boxes with {item!r} gave shape {tuple(chosen.shape)}; use an int, a "
                "slice, an (N,) bool mask or a list of indices"
            )
        return Boxes(chosen)

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __repr__(self) -> str:
        return f"Boxes({self.tensor})"

    def inside_box(self, box_size: tuple[int, int], boundary_threshold: int = 0) -> Tensor:
        """(N,) bool: whether the box lies in an image of `box_size` (height, width).

        A box may reach `boundary_threshold` pixels beyond the border.
        """
        height, width = box_size
        limit = self.tensor.new_tensor([width, height]) + boundary_threshold
        starts_inside = (self.tensor[:, :2] >= -boundary_threshold).all(dim=1)
        return starts_inside & (self.tensor[:, 2:] < limit).all(dim=1)

    def get_centers(self) -> Tensor:
        """(N, 2) box centers, (x, y)."""
        return (self.tensor[:, :2] + self.tensor[:, 2:]) / 2

    def scale(self, scale_x: float, scale_y: float) -> None:
        """Multiply x coordinates by `scale_x` and y coordinates by `scale_y`, in place."""
        self.tensor[:, 0::2] *= scale_x
        self.tensor[:, 1::2] *= scale_y

    @classmethod
    def cat(cls, boxes_list: list["Boxes"]) -> "Boxes":
        """All boxes of a list as one new object."""
        if not isinstance(boxes_list, list | tuple):
            raise ValueError(f"Boxes.cat takes a list of Boxes, got {type(boxes_list).__name__}")
        if len(boxes_list) == 0:
            return cls(torch.empty(0))
        return cls(torch.cat([boxes.tensor for boxes in boxes_list], dim=0))

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    def __iter__(self) -> Iterator[Tensor]:
        """Each box as a (4,) tensor."""
        yield from self.tensor


def pairwise_intersection(boxes1: Boxes, boxes2: Boxes) -> Tensor:
    """(N, M) areas shared by each of N and each of M boxes."""
    first, second = boxes1.tensor[:, None], boxes2.tensor
    sides = torch.min(first[..., 2:], second[:, 2:]) - torch.max(first[..., :2], second[:, :2])
    return sides.clamp_(min=0).prod(dim=2)


def pairwise_iou(boxes1: Boxes, boxes2: Boxes) -> Tensor:
    """(N, M) intersection over union of each of N and each of M boxes; 0 where they are apart."""
    intersection = pairwise_intersection(boxes1, boxes2)
    union = boxes1.area()[:, None] + boxes2.area() - intersection
    return torch.where(intersection > 0, intersection / union, 0.0)  # no NaN for empty boxes


def pairwise_ioa(boxes1: Boxes, boxes2: Boxes) -> Tensor:
    """(N, M) intersection over the area of `boxes2`; 0 where they are apart."""
    intersection = pairwise_intersection(boxes1, boxes2)
    return torch.where(intersection > 0, intersection / boxes2.area(), 0.0)
