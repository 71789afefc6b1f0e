"""Boxes and box modes: closed forms, torchvision, and properties of random boxes."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou

from detectron2.structures import (
    Boxes,
    BoxMode,
    pairwise_ioa,
    pairwise_iou,
)
from detectron2.structures.boxes import pairwise_intersection

coordinates = st.integers(0, 40)
box_lists = st.lists(st.tuples(coordinates, coordinates, coordinates, coordinates), max_size=6)


def as_boxes(quads: list[tuple[int, int, int, int]]) -> Boxes:
    """Boxes whose corners are in order; some of them have no area."""
    return Boxes(
        torch.tensor([[min(a, c), min(b, d), max(a, c), max(b, d)] for a, b, c, d in quads])
    )


def pixels_of(box: torch.Tensor) -> set[tuple[int, int]]:
    x0, y0, x1, y1 = box.int().tolist()
    return {(x, y) for x in range(x0, x1) for y in range(y0, y1)}


@settings(max_examples=40, deadline=None)
@given(box_lists, box_lists)
def test_pairwise_areas_equal_counts_of_pixels(quads1, quads2):
    boxes1, boxes2 = as_boxes(quads1), as_boxes(quads2)
    before = boxes1.tensor.clone(), boxes2.tensor.clone()
    shape = (len(boxes1), len(boxes2))
    shared, iou, ioa = torch.zeros(shape), torch.zeros(shape), torch.zeros(shape)
    for i, box1 in enumerate(boxes1):
        for j, box2 in enumerate(boxes2):
            pixels1, pixels2 = pixels_of(box1), pixels_of(box2)
            shared[i, j] = len(pixels1 & pixels2)
            iou[i, j] = len(pixels1 & pixels2) / max(len(pixels1 | pixels2), 1)
            ioa[i, j] = len(pixels1 & pixels2) / max(len(pixels2), 1)
    torch.testing.assert_close(pairwise_intersection(boxes1, boxes2), shared)
    torch.testing.assert_close(pairwise_iou(boxes1, boxes2), iou)
    torch.testing.assert_close(pairwise_ioa(boxes1, boxes2), ioa)
    assert torch.equal(boxes1.tensor, before[0]) and torch.equal(boxes2.tensor, before[1])


def test_iou_agrees_with_torchvision():
    torch.manual_seed(0)
    corners = torch.rand(30, 2, 2) * 100
    boxes = Boxes(torch.cat([corners[:, 0], corners.sum(dim=1)], dim=1))
    other = Boxes(boxes.tensor.flip(0))
    torch.testing.assert_close(pairwise_iou(boxes, other), box_iou(boxes.tensor, other.tensor))


def test_iou_of_known_boxes():
    unit = Boxes([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]])
    others = Boxes([[0, 0, 1, 1], [0, 0, 0.5, 1], [0, 0, 0.5, 0.5], [0.5, 0.5, 1.5, 1.5]])
    expected = torch.tensor([[1.0, 0.5, 0.25, 0.25 / 1.75]] * 2)
    torch.testing.assert_close(pairwise_iou(unit, others), expected)
    torch.testing.assert_close(pairwise_ioa(unit, others)[0], torch.tensor([1.0, 1.0, 1.0, 0.25]))


def test_constructor_takes_lists_makes_float32_and_rejects_other_shapes():
    assert Boxes([[1, 2, 3, 4]]).tensor.dtype == torch.float32
    assert Boxes(torch.zeros(2, 4, dtype=torch.float64)).tensor.dtype == torch.float32
    for empty in ([], torch.zeros(0), torch.zeros(0, 5)):
        assert Boxes(empty).tensor.shape == (0, 4)
    for wrong in (torch.zeros(4), torch.zeros(2, 5), torch.zeros(1, 2, 4)):
        with pytest.raises(ValueError, match="shape"):
            Boxes(wrong)


def test_indexing_gives_boxes():
    boxes = Boxes(torch.arange(12.0).view(3, 4))
    assert boxes[1].tensor.tolist() == [[4, 5, 6, 7]]
    assert boxes[-1].tensor.tolist() == [[8, 9, 10, 11]]
    assert len(boxes[1:]) == 2 and len(boxes[:0]) == 0
    assert boxes[torch.tensor([True, False, True])].tensor[:, 0].tolist() == [0, 8]
    assert boxes[[2, 0]].tensor[:, 0].tolist() == [8, 0]
    assert boxes[torch.tensor([], dtype=torch.int64)].tensor.shape == (0, 4)
    with pytest.raises(ValueError, match="shape"):
        boxes[torch.zeros(3, 4, dtype=torch.bool)]
    assert [box.shape for box in boxes] == [(4,)] * 3
    assert "Boxes(tensor" in repr(boxes)


def test_clip_keeps_the_tensor_it_was_made_of_and_refuses_nan():
    tensor = torch.tensor([[-5.0, 2.0, 30.0, 40.0], [1.0, 1.0, 2.0, 2.0]])
    boxes = Boxes(tensor)
    boxes.clip((10, 20))
    assert boxes.tensor.tolist() == [[0, 2, 20, 10], [1, 1, 2, 2]]
    assert tensor[0].tolist() == [-5, 2, 30, 40]
    with pytest.raises(ValueError, match="infinite or NaN"):
        Boxes([[0.0, 0.0, math.nan, 1.0]]).clip((10, 10))


def test_measures_of_boxes():
    boxes = Boxes([[0.0, 0.0, 4.0, 6.0], [1.0, 1.0, 1.0, 5.0], [-3.0, 0.0, 5.0, 10.0]])
    assert boxes.area().tolist() == [24, 0, 80]
    assert boxes.nonempty().tolist() == [True, False, True]
    assert boxes.nonempty(threshold=5).tolist() == [False, False, True]
    assert boxes.get_centers().tolist() == [[2, 3], [1, 3], [1, 5]]
    # The right and bottom border are excluded, as boxes end before them.
    assert boxes.inside_box((6, 4)).tolist() == [False, True, False]
    assert boxes.inside_box((7, 5)).tolist() == [True, True, False]
    assert boxes.inside_box((10, 10), boundary_threshold=3).tolist() == [True, True, True]


def test_clone_scale_cat_to():
    boxes = Boxes([[1.0, 2.0, 3.0, 4.0]])
    copy = boxes.clone()
    copy.scale(2, 10)
    assert copy.tensor.tolist() == [[2, 20, 6, 40]]
    assert boxes.tensor.tolist() == [[1, 2, 3, 4]]
    joined = Boxes.cat([boxes, copy])
    assert len(joined) == 2
    joined.scale(0, 0)
    assert boxes.tensor.sum() == 10
    assert Boxes.cat([]).tensor.shape == (0, 4)
    assert boxes.to("cpu").device == torch.device("cpu")
    with pytest.raises(ValueError, match="list"):
        Boxes.cat(boxes)


@pytest.mark.parametrize("kind", [list, tuple])
def test_convert_one_box_keeps_the_type(kind):
    got = BoxMode.convert(kind([5.0, 5.0, 10.0, 10.0]), BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
    assert isinstance(got, kind) and isinstance(got[0], float)
    assert got == kind([5.0, 5.0, 5.0, 5.0])
    rotated = kind([50, 50, 30, 20, 0])
    assert BoxMode.convert(rotated, BoxMode.XYWHA_ABS, BoxMode.XYXY_ABS) == kind([35, 40, 65, 60])
    upright = kind([50, 50, 30, 20])
    got = BoxMode.convert(upright, BoxMode.XYWH_ABS, BoxMode.XYWHA_ABS)
    assert got == kind([65, 60, 30, 20, 0])
    for nested in (kind([[1, 2, 3, 4]]), kind([[1, 2, 3, 4]] * 4), kind([1, 2, 3])):
        with pytest.raises(ValueError, match="4 numbers"):
            BoxMode.convert(nested, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy])
def test_convert_many_boxes_keeps_dtype_and_input(dtype, make):
    boxes = make(np.array([[5, 5, 10, 10], [1, 1, 2, 3]], dtype=dtype))
    got = BoxMode.convert(boxes, 0, 1)
    assert type(got) is type(boxes) and got.dtype == boxes.dtype
    assert got.tolist() == [[5, 5, 5, 5], [1, 1, 1, 2]]
    assert boxes.tolist() == [[5, 5, 10, 10], [1, 1, 2, 3]]
    assert BoxMode.convert(got, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS).tolist() == boxes.tolist()
    empty = boxes[:0]
    assert BoxMode.convert(empty, 0, 1).shape == (0, 4)
    with pytest.raises(ValueError, match="4 columns"):
        BoxMode.convert(boxes[:, :3], 0, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_rotated_box_converts_to_the_bounds_of_its_turned_corners(dtype):
    torch.manual_seed(0)
    rotated = torch.rand(40, 5, dtype=dtype) * torch.tensor([90, 60, 30, 20, 720], dtype=dtype)
    rotated[:, 4] -= 360
    bounds = []
    for x, y, width, height, angle in rotated.tolist():
        turn = complex(math.cos(math.radians(angle)), -math.sin(math.radians(angle)))  # y is down
        corners = [turn * complex(sx * width, sy * height) / 2 for sx in (-1, 1) for sy in (-1, 1)]
        xs, ys = [x + c.real for c in corners], [y + c.imag for c in corners]
        bounds.append([min(xs), min(ys), max(xs), max(ys)])
    got = BoxMode.convert(rotated, BoxMode.XYWHA_ABS, BoxMode.XYXY_ABS)
    torch.testing.assert_close(got, torch.tensor(bounds, dtype=dtype), atol=1e-4, rtol=0)


@pytest.mark.parametrize("mode", [BoxMode.XYXY_REL, BoxMode.XYWH_REL])
def test_relative_modes_are_refused(mode):
    with pytest.raises(ValueError, match="relative"):
        BoxMode.convert([0.1, 0.1, 0.2, 0.2], mode, BoxMode.XYXY_ABS)
    with pytest.raises(ValueError, match="relative"):
        BoxMode.convert([1, 1, 2, 2], BoxMode.XYXY_ABS, mode)


def test_box_mode_survives_json_and_same_mode_returns_the_input():
    assert BoxMode(json.loads(json.dumps({"mode": BoxMode.XYWH_REL}))["mode"]) is BoxMode.XYWH_REL
    box = [1, 2, 3, 4]
    assert BoxMode.convert(box, BoxMode.XYXY_REL, BoxMode.XYXY_REL) is box
