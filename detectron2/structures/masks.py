"""Instance masks of one image: as bitmaps, as polygons, or as fixed-size maps in boxes.

Polygons are flat arrays x0, y0, x1, y1, ... in the continuous pixel coordinates of `Boxes`.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from pycocotools import mask as mask_util
from torch import Tensor
from torchvision.ops import roi_align

from .boxes import Boxes
from .pasting import paste_masks_in_image

MIN_POLYGON_COORDINATES = 6  # three corners


def polygon_area(x: np.ndarray, y: np.ndarray) -> float:
    """Area of one polygon by the shoelace formula; (P,) x and (P,) y of its corners, in order."""
    return 0.5 * np.abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))


def polygons_to_bitmask(polygons: list[np.ndarray], height: int, width: int) -> np.ndarray:
    """(height, width) bool mask of the union of polygons, rasterized as the COCO API does."""
    if len(polygons) == 0:
        return np.zeros((height, width), dtype=bool)
    rles = mask_util.frPyObjects(list(polygons), height, width)
    return mask_util.decode(mask_util.merge(rles)).astype(bool)


def rasterize_polygons_within_box(
    polygons: list[np.ndarray], box: np.ndarray, mask_size: int
) -> Tensor:
    """(mask_size, mask_size) bool on the CPU: one instance's polygons, cropped to a box.

    Args:
        box: (4,) x0, y0, x1, y1, in the polygons' frame.
    """
    shortest_side = 0.1  # keeps the scale finite for boxes without extent
    width, height = box[2] - box[0], box[3] - box[1]
    scale_x = mask_size / max(width, shortest_side)
    scale_y = mask_size / max(height, shortest_side)
    in_box = []
    for polygon in polygons:
        corners = np.asarray(polygon, dtype=np.float64).reshape(-1, 2)
        in_box.append(((corners - box[:2]) * (scale_x, scale_y)).reshape(-1))
    return torch.from_numpy(polygons_to_bitmask(in_box, mask_size, mask_size))


class BitMasks:
    """N masks of an image of `image_size` (H, W) as one (N, H, W) bool `tensor`."""

    def __init__(self, tensor: Tensor | np.ndarray):
        """tensor: (N, H, W); nonzero is foreground."""
        if isinstance(tensor, Tensor):
            tensor = tensor.to(torch.bool)
        else:
            tensor = torch.as_tensor(tensor, dtype=torch.bool, device=torch.device("cpu"))
        if tensor.dim() != 3:
            raise ValueError(f"bit masks must have shape (N, H, W), got {tuple(tensor.shape)}")
        self.image_size = tuple(tensor.shape[1:])
        self.tensor = tensor

    def to(self, *args: Any, **kwargs: Any) -> "BitMasks":
        """The same masks with `Tensor.to(...)` applied."""
        return BitMasks(self.tensor.to(*args, **kwargs))

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    def __getitem__(self, item: int | slice | Tensor) -> "BitMasks":
        """The chosen masks; an int gives one mask, (1, H, W). May share memory."""
        if isinstance(item, int):
            return BitMasks(self.tensor[item].unsqueeze(0))
        chosen = self.tensor[item]
        if chosen.dim() != 3:
            raise ValueError(
                f"indexing masks with {item!r} gave shape {tuple(chosen.shape)}; use an int, a "
                "slice, an (N,) bool mask or a list of indices"
            )
        return BitMasks(chosen)

    def __iter__(self) -> Iterator[Tensor]:
        yield from self.tensor

    def __repr__(self) -> str:
        return f"BitMasks(num_instances={len(self)})"

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def nonempty(self) -> Tensor:
        """(N,) bool: whether the mask has a foreground pixel."""
        return self._foreground_along(2).bool().any(dim=1)

    @staticmethod
    def from_polygon_masks(
        polygon_masks: "PolygonMasks | list[list[np.ndarray]]", height: int, width: int
    ) -> "BitMasks":
        """The polygons of each instance, drawn into a (height, width) image."""
        instances = (
            polygon_masks.polygons if isinstance(polygon_masks, PolygonMasks) else polygon_masks
        )
        masks = np.zeros((len(instances), height, width), dtype=bool)
        for mask, polygons in zip(masks, instances, strict=True):
            mask[:] = polygons_to_bitmask(polygons, height, width)
        return BitMasks(torch.from_numpy(masks))

    def crop_and_resize(self, boxes: Tensor, mask_size: int) -> Tensor:
        """Crop mask i to box i and resize it with RoIAlign: (N, mask_size, mask_size) bool.

        Args:
            boxes: (N, 4), (x0, y0, x1, y1) in pixels of the image.
        """
        if len(boxes) != len(self):
            raise ValueError(f"need one box per mask, got {len(boxes)} boxes, {len(self)} masks")
        index = torch.arange(len(boxes), device=boxes.device, dtype=torch.float32)[:, None]
        rois = torch.cat([index, boxes.float()], dim=1).to(self.device)
        maps = self.tensor[:, None].float()
        sides = (mask_size, mask_size)
        return roi_align(maps, rois, sides, sampling_ratio=0, aligned=True).squeeze(1) >= 0.5

    def get_bounding_boxes(self) -> Boxes:
        """The tightest box around each mask; all zero for an empty mask."""
        if self.tensor.numel() == 0:
            return Boxes(torch.zeros(len(self), 4, device=self.device))
        columns, rows = self._foreground_along(1), self._foreground_along(2)  # (N, W), (N, H)
        # The first maximum of 0/1 values is the first foreground row or column.
        height, width = self.image_size
        sides = [
            columns.argmax(dim=1),
            rows.argmax(dim=1),
            width - columns.flip(1).argmax(dim=1),
            height - rows.flip(1).argmax(dim=1),
        ]
        boxes = torch.stack(sides, dim=1).float()
        return Boxes(boxes * columns.amax(dim=1, keepdim=True))

    def _foreground_along(self, dim: int) -> Tensor:
        """uint8 0/1: (N, W) columns (`dim` 1) or (N, H) rows (2) that have foreground pixels."""
        if self.tensor.shape[dim] == 0:
            return self.tensor.any(dim=dim).to(torch.uint8)
        # On a CPU, the maximum of bytes is 5 to 10 times as fast as `any` of bools.
        return (self.tensor.view(torch.uint8).amax(dim=dim) > 0).to(torch.uint8)

    @staticmethod
    def cat(bitmasks_list: list["BitMasks"]) -> "BitMasks":
        """All masks of a list, in order; at least one element, all of one image size."""
        if not isinstance(bitmasks_list, list | tuple) or len(bitmasks_list) == 0:
            raise ValueError(f"BitMasks.cat takes a list of BitMasks, got {bitmasks_list!r}")
        return BitMasks(torch.cat([masks.tensor for masks in bitmasks_list], dim=0))


class PolygonMasks:
    """N masks, each a union of polygons; always on the CPU.

    `polygons[i][j]` is polygon j of instance i, a flat float64 array of at least three corners.
    """

    def __init__(self, polygons: list[list[Tensor | np.ndarray]]):
        if not isinstance(polygons, list):
            raise ValueError(
                "PolygonMasks takes a list (instances) of lists (polygons) of coordinates, "
                f"got {type(polygons).__name__}"
            )
        self.polygons = [_check_instance(instance) for instance in polygons]

    def to(self, *args: Any, **kwargs: Any) -> "PolygonMasks":
        """These masks themselves: polygons stay on the CPU."""
        return self

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def get_bounding_boxes(self) -> Boxes:
        """The tightest box around each instance's polygons; all zero without polygons."""
        boxes = torch.zeros(len(self), 4)
        for i, instance in enumerate(self.polygons):
            if instance:
                corners = np.concatenate(instance).reshape(-1, 2)
                bounds = np.concatenate([corners.min(axis=0), corners.max(axis=0)])
                boxes[i] = torch.from_numpy(bounds)
        return Boxes(boxes)

    def nonempty(self) -> Tensor:
        """(N,) bool: whether the instance has a polygon."""
        return torch.tensor([len(instance) > 0 for instance in self.polygons], dtype=torch.bool)

    def __getitem__(self, item: int | slice | list[int] | Tensor | np.ndarray) -> "PolygonMasks":
        """The chosen instances, by an int, a slice, indices, or a (N,) bool mask."""
        if isinstance(item, int):
            return PolygonMasks([self.polygons[item]])
        if isinstance(item, slice):
            return PolygonMasks(self.polygons[item])
        if isinstance(item, list) and len(item) == 0:
            return PolygonMasks([])
        index = torch.as_tensor(item).cpu()
        if index.dtype == torch.bool:
            if index.shape != (len(self),):
                raise IndexError(f"a mask of shape {tuple(index.shape)} for {len(self)} instances")
            index = index.nonzero().squeeze(1)
        elif index.dtype not in (torch.uint8, torch.int16, torch.int32, torch.int64):
            raise IndexError(f"PolygonMasks cannot be indexed with {index.dtype} values")
        return PolygonMasks([self.polygons[i] for i in index.reshape(-1).tolist()])

    def __iter__(self) -> Iterator[list[np.ndarray]]:
        return iter(self.polygons)

    def __repr__(self) -> str:
        return f"PolygonMasks(num_instances={len(self)})"

    def __len__(self) -> int:
        return len(self.polygons)

    def crop_and_resize(self, boxes: Tensor, mask_size: int) -> Tensor:
        """Crop instance i to box i: (N, mask_size, mask_size) bool, on the device of `boxes`.

        Args:
            boxes: (N, 4), (x0, y0, x1, y1) in pixels of the image.
        """
        if len(boxes) != len(self):
            raise ValueError(f"need one box per mask, got {len(boxes)} boxes, {len(self)} masks")
        if len(self) == 0:
            return torch.empty(0, mask_size, mask_size, dtype=torch.bool, device=boxes.device)
        masks = [
            rasterize_polygons_within_box(polygons, box, mask_size)
            for polygons, box in zip(self.polygons, boxes.detach().cpu().numpy(), strict=True)
        ]
        return torch.stack(masks).to(device=boxes.device)

    def area(self) -> Tensor:
        """(N,) sums of the instances' polygon areas in square pixels; overlaps count twice."""
        areas = [sum(polygon_area(p[0::2], p[1::2]) for p in inst) for inst in self.polygons]
        return torch.tensor(areas, dtype=torch.float32)

    @staticmethod
    def cat(polymasks_list: list["PolygonMasks"]) -> "PolygonMasks":
        """All instances of a list, in order; at least one element."""
        if not isinstance(polymasks_list, list | tuple) or len(polymasks_list) == 0:
            raise ValueError(f"PolygonMasks.cat takes a list of them, got {polymasks_list!r}")
        return PolygonMasks([instance for masks in polymasks_list for instance in masks])


def _check_instance(polygons: list[Tensor | np.ndarray]) -> list[np.ndarray]:
    """The polygons of one instance as float64 arrays."""
    if not isinstance(polygons, list):
        raise ValueError(
            "each instance of PolygonMasks is a list of polygons, got "
            f"{type(polygons).__name__}; put a list around a single polygon"
        )
    arrays = []
    for polygon in polygons:
        array = polygon.cpu().numpy() if isinstance(polygon, Tensor) else polygon
        array = np.asarray(array, dtype=np.float64)
        if array.ndim != 1 or array.size % 2 != 0 or array.size < MIN_POLYGON_COORDINATES:
            raise ValueError(
                f"a polygon is a flat sequence x0, y0, x1, y1, ... of at least three corners, got "
                f"an array of shape {array.shape}"
            )
        arrays.append(array)
    return arrays


class ROIMasks:
    """N masks as one (N, M, M) `tensor` of values in [0, 1], each relative to its own box."""

    def __init__(self, tensor: Tensor):
        if tensor.dim() != 3:
            raise ValueError(f"ROI masks must have shape (N, M, M), got {tuple(tensor.shape)}")
        self.tensor = tensor

    def to(self, device: torch.device | str) -> "ROIMasks":
        return ROIMasks(self.tensor.to(device))

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __getitem__(self, item: slice | Tensor) -> "ROIMasks":
        return ROIMasks(self.tensor[item])

    def __repr__(self) -> str:
        return f"ROIMasks(num_instances={len(self)})"

    def to_bitmasks(
        self, boxes: Boxes | Tensor, height: int, width: int, threshold: float = 0.5
    ) -> BitMasks:
        """Each mask pasted into its box in a (height, width) image; see `paste_masks_in_image`."""
        return BitMasks(paste_masks_in_image(self.tensor, boxes, (height, width), threshold))
