"""Anchors against a slow loop over cells, sizes and aspect ratios."""

import math

import pytest
import torch

from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_anchor_generator
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator


def slow_anchors(size_hw, stride, sizes, ratios, offset):
    anchors = []
    for row in range(size_hw[0]):
        for column in range(size_hw[1]):
            x, y = (column + offset) * stride, (row + offset) * stride
            for size in sizes:
                for ratio in ratios:
                    width = size / math.sqrt(ratio)
                    height = size * math.sqrt(ratio)
                    anchors.append([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
    return torch.tensor(anchors)


@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_anchors_equal_a_slow_loop_on_every_level(offset):
    sizes, ratios, strides = [[8, 20], [64]], [[0.5, 1.0, 3.0]], [4, 16]
    generator = DefaultAnchorGenerator(
        sizes=sizes, aspect_ratios=ratios, strides=strides, offset=offset
    )
    shapes = [(3, 5), (1, 2)]
    got = generator([torch.zeros(2, 7, *shape) for shape in shapes])
    assert generator.num_anchors == [6, 3]
    for boxes, shape, stride, own_sizes in zip(got, shapes, strides, sizes, strict=True):
        want = slow_anchors(shape, stride, own_sizes, ratios[0], offset)
        torch.testing.assert_close(boxes.tensor, want)


def test_config_gives_the_same_anchors_as_arguments():
    cfg = get_cfg()
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32, 64]]
    cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = [[0.25, 1, 4]]
    cfg.MODEL.ANCHOR_GENERATOR.OFFSET = 0.25
    built = build_anchor_generator(cfg, [ShapeSpec(stride=4)])
    direct = DefaultAnchorGenerator(
        sizes=[32, 64], aspect_ratios=[0.25, 1, 4], strides=[4], offset=0.25
    )
    features = [torch.zeros(1, 1, 2, 2)]
    assert torch.equal(built(features)[0].tensor, direct(features)[0].tensor)
    # the sides of the first anchor: area 32^2, four times as wide as high
    assert built(features)[0].tensor[0].tolist() == [-31, -7, 33, 9]


def test_anchors_are_in_no_state_dict_but_move_with_the_module():
    generator = DefaultAnchorGenerator(sizes=[8], aspect_ratios=[1.0], strides=[4])
    assert not generator.state_dict()
    generator.double()
    assert all(anchors.dtype == torch.float64 for anchors in generator.cell_anchors)


def test_wrong_sizes_and_offsets_are_refused():
    arguments = {"sizes": [[8], [16]], "aspect_ratios": [[1.0]], "strides": [4, 8, 16]}
    with pytest.raises(ValueError, match="for 2 feature maps, there are 3"):
        DefaultAnchorGenerator(**arguments)
    with pytest.raises(ValueError, match="offset 1.0"):
        DefaultAnchorGenerator(sizes=[8], aspect_ratios=[1.0], strides=[4], offset=1.0)
    with pytest.raises(ValueError, match="expected a list"):
        DefaultAnchorGenerator(sizes=[], aspect_ratios=[1.0], strides=[4])
