"""Training targets of SOLOv2: which cells learn which instance.

Everything here runs on the device of the annotations (the CPU in training), so that only the
quarter-size masks are copied to the accelerator.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks, polygons_to_bitmask

from .grids import MASK_STRIDE, PyramidGrids, covered_cells


@dataclass(frozen=True)
class ImageTargets:
    """Targets of one image; P pairs of a positive cell and an instance, N instances.

    masks: (N, Hf, Wf) uint8 at stride 4; a cell's mask target is masks[instances[p]].
    cells: (P,) int64, flat over all levels.  instances: (P,) int64.
    classes: (sum of S * S,) int64, `num_classes` where background.
    """

    masks: Tensor
    cells: Tensor
    instances: Tensor
    classes: Tensor

    def to(self, device: torch.device | str) -> "ImageTargets":
        """The same targets on another device."""
        return ImageTargets(*(getattr(self, name).to(device) for name in self.__annotations__))


def image_targets(
    instances: Instances, mask_size_hw: tuple[int, int], grids: PyramidGrids, num_classes: int
) -> ImageTargets:
    """Targets of one image from `gt_classes`, `gt_masks` and (else the masks' bounds) `gt_boxes`.

    Args:
        instances: in pixels of the unpadded network input.
        mask_size_hw: size of the mask feature, a quarter of the padded input.
    """
    bitmasks = instance_bitmasks(instances)
    boxes = instances.gt_boxes if instances.has("gt_boxes") else BitMasks(bitmasks)
    boxes = boxes if isinstance(boxes, Boxes) else boxes.get_bounding_boxes()
    boxes_xyxy = boxes.tensor.to(bitmasks.device)
    centers, areas = centers_of_mass(bitmasks)
    frame_hw = (mask_size_hw[0] * MASK_STRIDE, mask_size_hw[1] * MASK_STRIDE)
    present = torch.nonzero(areas > 0).flatten()
    sizes = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2])[present]
    cells, owners = covered_cells(centers[present], sizes, frame_hw, grids, exact=False)
    owners = present[owners]
    classes = torch.full((grids.num_cells,), num_classes, dtype=torch.int64, device=cells.device)
    # A cell that several instances cover gets the class of the last of them.
    last = torch.full_like(classes, -1).scatter_reduce_(0, cells, owners, "amax")
    classes[cells] = instances.gt_classes.to(cells.device)[last[cells]]
    return ImageTargets(quarter_masks(bitmasks, mask_size_hw), cells, owners, classes)


def instance_bitmasks(instances: Instances) -> Tensor:
    """`gt_masks` as (N, H, W) bool; polygons are rasterized at the instances' image size."""
    if len(instances) == 0:
        return torch.zeros(0, *instances.image_size, dtype=torch.bool)
    if not instances.has("gt_masks"):
        raise ValueError(
            "SOLOv2 training needs gt_masks; the annotations of an image have none. Points alone "
            "cannot train it: merge pseudo labels for them first (tools/merge_labels.py)"
        )
    masks = instances.gt_masks
    if isinstance(masks, PolygonMasks):
        rasters = [polygons_to_bitmask(polygons, *instances.image_size) for polygons in masks]
        return torch.from_numpy(np.stack(rasters)).bool()
    return (masks.tensor if isinstance(masks, BitMasks) else masks).bool()


def centers_of_mass(masks: Tensor) -> tuple[Tensor, Tensor]:
    """Mean pixel index of each mask: (N, 2) float32 x and y, and the areas (N,) int64.

    The center of an empty mask is (0, 0).
    """
    count, height, width = masks.shape
    ys = torch.arange(height, dtype=torch.float32, device=masks.device)
    xs = torch.arange(width, dtype=torch.float32, device=masks.device)
    row_areas = masks.new_zeros(count, height, dtype=torch.float32)
    row_moments = torch.zeros_like(row_areas)
    for i, mask in enumerate(masks):  # one float copy of one mask at a time
        pixels = mask.float()
        row_areas[i] = pixels.sum(dim=1)
        row_moments[i] = pixels @ xs
    # Upstream parity: sums over a row are exact in float32; the sum over rows rounds, so its order
    # (over the last dimension of an N x H array) is part of the targets.
    areas = row_areas.long().sum(dim=1)
    moments = torch.stack([row_moments.sum(dim=-1), (row_areas * ys).sum(dim=-1)], dim=1)
    return moments / areas.clamp(min=1)[:, None], areas


def quarter_masks(masks: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Masks (N, H, W) shrunk to a quarter and zero padded to `size_hw`: (N, Hf, Wf) uint8.

    This uses OpenCV's fixed-point bilinear resize of bytes: its rounding decides the border pixels
    of the targets that published checkpoints learned.
    """
    count, height, width = masks.shape
    # Halves round up, as the resize helper of published runs does.
    shrunk_h, shrunk_w = (max(1, int(n / MASK_STRIDE + 0.5)) for n in (height, width))
    if shrunk_h > size_hw[0] or shrunk_w > size_hw[1]:
        raise ValueError(
            f"masks of {height} x {width} pixels do not fit a mask feature of {size_hw} at stride "
            f"{MASK_STRIDE}: give masks of the network's input size"
        )
    output = torch.zeros(count, *size_hw, dtype=torch.uint8)
    for i, mask in enumerate(masks.to(device="cpu", dtype=torch.uint8).numpy()):
        shrunk = cv2.resize(mask, (shrunk_w, shrunk_h), interpolation=cv2.INTER_LINEAR)
        output[i, :shrunk_h, :shrunk_w] = torch.from_numpy(shrunk)
    return output.to(masks.device)
