"""Pool the features of regions, each from the pyramid level that fits its size."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import RoIPool

from detectron2.layers import ROIAlign, cat, nonzero_tuple
from detectron2.structures import Boxes

POOLER_TYPES = ("ROIAlign", "ROIAlignV2", "ROIPool")


def assign_boxes_to_levels(
    box_lists: list[Boxes],
    min_level: int,
    max_level: int,
    canonical_box_size: int,
    canonical_level: int,
) -> Tensor:
    """Level of each box by its size, as an offset from `min_level`; equation 1 of the FPN paper.

    Args:
        box_lists: boxes of each image, in input pixels.
        min_level, max_level: first and last level, as log2 of the stride.
        canonical_box_size: square root of the area of boxes that belong to `canonical_level`.

    Returns:
        (R,) int64 in [0, max_level - min_level], for the boxes of all images in order.
    """
    relative_size = cat([boxes.area() for boxes in box_lists]).sqrt() / canonical_box_size
    # 1e-8 keeps boxes without area finite.
    levels = torch.log2(relative_size + 1e-8).add(canonical_level).floor()
    return (levels - min_level).clamp(0, max_level - min_level).long()


def convert_boxes_to_pooler_format(box_lists: list[Boxes]) -> Tensor:
    """(R, 5) rows of image index, x0, y0, x1, y1 for the boxes of all images in order."""
    boxes = torch.cat([boxes.tensor for boxes in box_lists])
    # full_like, because a trace must not fix the number of boxes.
    indices = [torch.full_like(b.tensor[:, :1], i) for i, b in enumerate(box_lists)]
    return torch.cat([torch.cat(indices), boxes], dim=1)


class ROIPooler(nn.Module):
    """Features of fixed size for boxes of any size, from one map or from a pyramid of maps."""

    def __init__(
        self,
        output_size: int | tuple[int, int] | list[int],
        scales: Sequence[float],
        sampling_ratio: int,
        pooler_type: str,
        canonical_box_size: int = 224,
        canonical_level: int = 4,
    ):
        """
        Args:
            output_size: side, or height and width, of the results.
            scales: 1 / stride of each map, from fine to coarse; strides double from map to map.
            sampling_ratio: of RoIAlign, samples per output cell and axis; 0: one per feature cell.
            pooler_type: "ROIAlignV2", with pixel centers at half integers; "ROIAlign", which is off
                by half a cell, for old models; or "ROIPool".
            canonical_box_size, canonical_level: boxes whose area has this square root are pooled
                from the map of stride 2 ** canonical_level.
        """
        super().__init__()
        if isinstance(output_size, int):
            output_size = (output_size, output_size)
        if len(output_size) != 2 or not all(isinstance(side, int) for side in output_size):
            raise ValueError(f"output_size={output_size!r}: expected one or two integers")
        self.output_size = tuple(output_size)
        if canonical_box_size <= 0:
            raise ValueError(f"canonical_box_size={canonical_box_size}: expected a positive number")
        if pooler_type not in POOLER_TYPES:
            raise ValueError(f"pooler type {pooler_type!r}: expected one of {POOLER_TYPES}")
        self.level_poolers = nn.ModuleList(
            RoIPool(self.output_size, spatial_scale=scale)
            if pooler_type == "ROIPool"
            else ROIAlign(self.output_size, scale, sampling_ratio, aligned=pooler_type[-1] == "2")
            for scale in scales
        )
        levels = [-math.log2(scale) for scale in scales]
        first = round(levels[0])
        expected = range(first, first + len(levels))
        if first < 0 or any(
            not math.isclose(level, want, abs_tol=1e-6)
            for level, want in zip(levels, expected, strict=True)
        ):
            raise ValueError(
                f"the maps have strides {[1 / scale for scale in scales]}; expected powers of 2, "
                "each twice the one before"
            )
        self.min_level, self.max_level = expected[0], expected[-1]
        self.canonical_level = canonical_level
        self.canonical_box_size = canonical_box_size

    def forward(self, x: list[Tensor], box_lists: list[Boxes]) -> Tensor:
        """
        Args:
            x: maps (N, C, H, W), one for each of `scales`.
            box_lists: boxes of each of the N images, in input pixels.

        Returns:
            (R, C, *output_size) for the R boxes of all images, in order.
        """
        if not isinstance(x, list) or not isinstance(box_lists, list):
            raise ValueError("ROIPooler takes a list of maps and a list of Boxes")
        if len(x) != len(self.level_poolers):
            raise ValueError(f"got {len(x)} maps; this pooler takes {len(self.level_poolers)}")
        if len(box_lists) != x[0].size(0):
            raise ValueError(f"got Boxes of {len(box_lists)} images and maps of {x[0].size(0)}")
        if len(box_lists) == 0:
            return x[0].new_zeros(0, x[0].shape[1], *self.output_size)
        rois = convert_boxes_to_pooler_format(box_lists)
        if len(self.level_poolers) == 1:
            return self.level_poolers[0](x[0], rois)
        assigned = assign_boxes_to_levels(
            box_lists,
            self.min_level,
            self.max_level,
            self.canonical_box_size,
            self.canonical_level,
        )
        output = x[0].new_zeros(rois.shape[0], x[0].shape[1], *self.output_size)
        for level, (features, pooler) in enumerate(zip(x, self.level_poolers, strict=True)):
            chosen = nonzero_tuple(assigned == level)[0]
            output.index_put_((chosen,), pooler(features, rois[chosen]))
        return output
