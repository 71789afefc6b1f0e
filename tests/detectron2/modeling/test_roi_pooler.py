"""Pooling of regions: on ramps, where averages are known, and from the right level."""

import math

import pytest
import torch

from detectron2.modeling.poolers import (
    ROIPooler,
    assign_boxes_to_levels,
    convert_boxes_to_pooler_format,
)
from detectron2.structures import Boxes
from detectron2.utils.testing import random_boxes


def ramp(height, width, stride):
    """(1, 2, H, W): x and y of the cell centers in input pixels."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return (torch.stack([x, y])[None] + 0.5) * stride


@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_regions_of_a_ramp_are_the_centers_of_their_parts(sampling_ratio):
    boxes = torch.tensor([[16.0, 24.0, 80.0, 56.0], [30.0, 30.0, 37.0, 93.0]])
    pooler = ROIPooler((2, 4), [1 / 8], sampling_ratio, "ROIAlignV2")
    got = pooler([ramp(16, 16, 8)], [Boxes(boxes)])
    for (x0, y0, x1, y1), pooled in zip(boxes.tolist(), got, strict=True):
        xs = x0 + (torch.arange(4) + 0.5) * (x1 - x0) / 4
        ys = y0 + (torch.arange(2) + 0.5) * (y1 - y0) / 2
        torch.testing.assert_close(pooled[0], xs.expand(2, 4), atol=1e-3, rtol=0)
        torch.testing.assert_close(pooled[1], ys[:, None].expand(2, 4), atol=1e-3, rtol=0)


def test_the_old_kind_is_half_a_cell_off():
    boxes = [Boxes(torch.tensor([[32.0, 32.0, 64.0, 64.0]]))]
    new, old = (
        ROIPooler(2, [1 / 8], 2, kind)([ramp(16, 16, 8)], boxes)
        for kind in ("ROIAlignV2", "ROIAlign")
    )
    torch.testing.assert_close(old, new + 4.0)


def test_max_pooling_takes_the_largest_cell():
    pooled = ROIPooler(1, [1 / 8], 0, "ROIPool")(
        [ramp(16, 16, 8)], [Boxes(torch.tensor([[16.0, 16.0, 47.0, 31.0]]))]
    )
    # cells up to the rounded corners (6, 4), inclusive: their centers
    assert pooled.flatten().tolist() == [6.5 * 8, 4.5 * 8]


def test_levels_follow_the_box_size():
    sides = [1.0, 50.0, 111.9, 112.0, 223.9, 224.0, 447.9, 448.0, 5000.0]
    boxes = Boxes(torch.tensor([[0.0, 0.0, side, side] for side in sides]))
    want = [min(max(math.floor(4 + math.log2(side / 224)), 2), 5) - 2 for side in sides]
    assert assign_boxes_to_levels([boxes], 2, 5, 224, 4).tolist() == want
    flat = Boxes(torch.tensor([[3.0, 3.0, 3.0, 3.0]]))
    assert assign_boxes_to_levels([flat], 2, 5, 224, 4).tolist() == [0]


def test_a_pyramid_gives_each_box_what_its_level_alone_would():
    torch.manual_seed(0)
    strides = [4, 8, 16]
    maps = [torch.randn(2, 3, 512 // s, 512 // s) for s in strides]
    boxes = [Boxes(random_boxes(7, 500)), Boxes(random_boxes(5, 120))]
    pooler = ROIPooler(3, [1 / s for s in strides], 0, "ROIAlignV2", canonical_box_size=112)
    got = pooler(maps, boxes)
    levels = assign_boxes_to_levels(boxes, 2, 4, 112, 4).tolist()
    assert len(set(levels)) > 1 and got.shape == (12, 3, 3, 3)
    rois = convert_boxes_to_pooler_format(boxes)
    assert rois[:, 0].tolist() == [0] * 7 + [1] * 5
    for row, level, pooled in zip(rois, levels, got, strict=True):
        image = int(row[0])
        single = ROIPooler(3, [1 / strides[level]], 0, "ROIAlignV2")
        alone = single([maps[level][image : image + 1]], [Boxes(row[None, 1:])])
        torch.testing.assert_close(pooled, alone[0])


def test_images_and_boxes_may_be_none():
    pooler = ROIPooler(2, [1 / 4, 1 / 8], 0, "ROIAlignV2")
    assert pooler([torch.zeros(0, 5, 8, 8), torch.zeros(0, 5, 4, 4)], []).shape == (0, 5, 2, 2)
    maps = [torch.zeros(2, 5, 8, 8, requires_grad=True), torch.zeros(2, 5, 4, 4)]
    none = Boxes(torch.zeros(0, 4))
    pooled = pooler(maps, [none, none])
    assert pooled.shape == (0, 5, 2, 2)
    pooled.sum().backward()


@pytest.mark.filterwarnings("ignore")
def test_a_trace_holds_for_other_numbers_of_boxes():
    pooler = ROIPooler(2, [1 / 4, 1 / 8], 0, "ROIAlignV2", canonical_box_size=16)
    maps = [torch.randn(1, 2, 16, 16), torch.randn(1, 2, 8, 8)]

    class Pool(torch.nn.Module):
        def forward(self, maps, boxes):
            return pooler(list(maps), [Boxes(boxes)])

    traced = torch.jit.trace(Pool(), (tuple(maps), random_boxes(4, 60)), check_trace=False)
    for count in (1, 9):
        boxes = random_boxes(count, 60)
        torch.testing.assert_close(traced(tuple(maps), boxes), pooler(maps, [Boxes(boxes)]))


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"output_size": (2, 2, 2)}, "output_size"),
        ({"pooler_type": "Mean"}, "expected one of"),
        ({"scales": [1 / 3]}, "powers of 2"),
        ({"scales": [1 / 4, 1 / 16]}, "twice the one before"),
        ({"canonical_box_size": 0}, "positive"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    right = {"output_size": 2, "scales": [1 / 4], "sampling_ratio": 0, "pooler_type": "ROIAlign"}
    with pytest.raises(ValueError, match=message):
        ROIPooler(**right | arguments)
    pooler = ROIPooler(**right)
    with pytest.raises(ValueError, match="2 maps"):
        pooler([torch.zeros(1, 1, 4, 4)] * 2, [Boxes(torch.zeros(0, 4))])
    with pytest.raises(ValueError, match="Boxes of 1 images"):
        pooler([torch.zeros(2, 1, 4, 4)], [Boxes(torch.zeros(0, 4))])
