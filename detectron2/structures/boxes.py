"""Axis-aligned boxes: storage formats, a container for N boxes, and pairwise geometry.

Unless a name says otherwise, a box is (x0, y0, x1, y1) in absolute pixels, x to the right and y
down, with continuous coordinates: pixel column j covers [j, j + 1), so width is x1 - x0.
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
    """How the 4 (or 5) numbers of a box are to be read; the values are part of file formats.

    ABS modes are in pixels, REL modes in fractions of the image size. XYWHA_ABS is (center x,
    center y, width, height, angle), the angle in degrees, counter-clockwise.
    """

    XYXY_ABS = 0
    XYWH_ABS = 1
    XYXY_REL = 2
    XYWH_REL = 3
    XYWHA_ABS = 4

    @staticmethod
    def convert(box: RawBoxes, from_mode: "BoxMode", to_mode: "BoxMode") -> RawBoxes:
        """Rewrite boxes in another mode; a new object of the input's type (and dtype, if any).

        A rotated box becomes the smallest axis-aligned box around it.

        Args:
            box: one box as a list or tuple, or (N, 4) / (N, 5) boxes as an array or tensor.
            from_mode: mode of `box`. With `to_mode` equal to it, `box` itself is returned.
            to_mode: mode of the result, an absolute one.
        """
        from_mode, to_mode = BoxMode(from_mode), BoxMode(to_mode)
        if from_mode == to_mode:
            return box
        for mode in (from_mode, to_mode):
            if mode not in _TO_CORNERS:
                allowed = ", ".join(m.name for m in _TO_CORNERS)
                raise ValueError(
                    f"cannot convert boxes from {from_mode.name} to {to_mode.name}: "
                    f"only {allowed} convert; scale relative boxes by the image size first"
                )
        boxes = _as_tensor(box, from_mode)
        # Rotation needs more precision than an integer or half type has.
        columns = _TO_CORNERS[from_mode](*boxes.double().unbind(dim=-1))
        result = torch.stack(_FROM_CORNERS[to_mode](*columns), dim=-1).to(dtype=boxes.dtype)
        if isinstance(box, list | tuple):
            return type(box)(result.tolist())
        return result.numpy() if isinstance(box, np.ndarray) else result


def _as_tensor(box: RawBoxes, mode: BoxMode) -> Tensor:
    """The boxes as a tensor (..., 4 or 5), checked against the length that `mode` asks for."""
    length = 5 if mode == BoxMode.XYWHA_ABS else 4
    if isinstance(box, list | tuple):
        if len(box) != length or any(isinstance(value, list | tuple) for value in box):
            raise ValueError(f"one {mode.name} box has {length} numbers, got {box!r}")
        return torch.tensor(box)
    boxes = torch.from_numpy(box) if isinstance(box, np.ndarray) else box
    if boxes.shape[-1] != length:
        raise ValueError(f"{mode.name} boxes have {length} columns, got shape {tuple(box.shape)}")
    return boxes


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
    """N boxes as one (N, 4) float32 tensor, (x0, y0, x1, y1) in absolute pixels.

    Attributes:
        tensor: the coordinates. `clip` and `scale` change the object; all else makes a new one.
    """

    def __init__(self, tensor: Tensor):
        """
        Args:
            tensor: (N, 4) numbers, a tensor or anything `torch.as_tensor` takes; an empty input of
                any shape makes (0, 4).
        """
        if not isinstance(tensor, Tensor):
            tensor = torch.as_tensor(tensor, dtype=torch.float32, device=torch.device("cpu"))
        tensor = tensor.to(torch.float32)
        if tensor.numel() == 0:
            tensor = tensor.reshape(0, 4)
        if tensor.dim() != 2 or tensor.size(-1) != 4:
            raise ValueError(f"boxes must have shape (N, 4), got {tuple(tensor.shape)}")
        self.tensor = tensor

    def clone(self) -> "Boxes":
        """A copy that shares no memory."""
        return Boxes(self.tensor.clone())

    def to(self, device: torch.device | str) -> "Boxes":
        """The same boxes on `device`."""
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
        # A new tensor, so that a tensor given to the constructor stays what it was.
        self.tensor = torch.stack((x[:, 0], y[:, 0], x[:, 1], y[:, 1]), dim=-1)

    def nonempty(self, threshold: float = 0.0) -> Tensor:
        """(N,) bool: both sides are longer than `threshold` pixels."""
        return (self.tensor[:, 2:] - self.tensor[:, :2] > threshold).all(dim=1)

    def __getitem__(self, item: int | slice | Tensor) -> "Boxes":
        """The chosen boxes; an int gives one box, (1, 4). May share memory with this object."""
        if isinstance(item, int):
            return Boxes(self.tensor[item].view(1, -1))
        chosen = self.tensor[item]
        if chosen.dim() != 2:
            raise ValueError(
                f"indexing boxes with {item!r} gave shape {tuple(chosen.shape)}; use an int, a "
                "slice, a (N,) bool mask or a list of indices"
            )
        return Boxes(chosen)

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __repr__(self) -> str:
        return f"Boxes({self.tensor})"

    def inside_box(self, box_size: tuple[int, int], boundary_threshold: int = 0) -> Tensor:
        """(N,) bool: the box lies in an image of `box_size` (height, width).

        A box may reach `boundary_threshold` pixels beyond the border; x1 and y1 stay below it.
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
        """All boxes of a list, in order, as one new object; no boxes for an empty list."""
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
    return _ratio_where_positive(intersection, union)


def pairwise_ioa(boxes1: Boxes, boxes2: Boxes) -> Tensor:
    """(N, M) intersection over the area of `boxes2`; 0 where they are apart."""
    intersection = pairwise_intersection(boxes1, boxes2)
    return _ratio_where_positive(intersection, boxes2.area().expand_as(intersection))


def _ratio_where_positive(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole, and 0 wherever `part` is not positive, so that empty boxes give no NaN."""
    return torch.where(part > 0, part / whole, part.new_zeros(()))


def pairwise_point_box_distance(points: Tensor, boxes: Boxes) -> Tensor:
    """Distances from each point to the left, top, right and bottom side of each box.

    Args:
        points: (P, 2), (x, y) in pixels.
        boxes: N boxes.

    Returns:
        (P, N, 4), all positive exactly where the point is strictly inside the box.
    """
    low_corner, high_corner = boxes.tensor[:, :2], boxes.tensor[:, 2:]
    points = points[:, None]  # (P, 1, 2)
    return torch.cat([points - low_corner, high_corner - points], dim=2)


def matched_pairwise_iou(boxes1: Boxes, boxes2: Boxes) -> Tensor:
    """(N,) intersection over union of box i of `boxes1` with box i of `boxes2`."""
    if len(boxes1) != len(boxes2):
        raise ValueError(f"boxes must come in pairs, got {len(boxes1)} and {len(boxes2)}")
    first, second = boxes1.tensor, boxes2.tensor
    sides = torch.min(first[:, 2:], second[:, 2:]) - torch.max(first[:, :2], second[:, :2])
    intersection = sides.clamp_(min=0).prod(dim=1)
    return _ratio_where_positive(intersection, boxes1.area() + boxes2.area() - intersection)
