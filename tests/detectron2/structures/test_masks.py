"""Bitmaps and polygons: pycocotools, closed forms, slow loops, random shapes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as mask_util

from detectron2.layers import paste_masks_in_image
from detectron2.structures import (
    BitMasks,
    Boxes,
    PolygonMasks,
    ROIMasks,
    polygon_area,
    polygons_to_bitmask,
    rasterize_polygons_within_box,
)

SQUARE = [1.0, 1.0, 5.0, 1.0, 5.0, 5.0, 1.0, 5.0]
TRIANGLE = [0.0, 0.0, 8.0, 0.0, 8.0, 8.0]


@st.composite
def rectangles(draw) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 with positive sides within 20 x 20."""
    x0, y0 = draw(st.integers(0, 18)), draw(st.integers(0, 18))
    return x0, y0, draw(st.integers(x0 + 1, 20)), draw(st.integers(y0 + 1, 20))


def corners(box: tuple[float, float, float, float]) -> np.ndarray:
    x0, y0, x1, y1 = box
    return np.array([x0, y0, x1, y0, x1, y1, x0, y1], dtype=np.float64)


@settings(max_examples=40, deadline=None)
@given(arrays(bool, st.tuples(st.integers(0, 4), st.integers(1, 7), st.integers(1, 9))))
def test_bounding_boxes_equal_a_loop_over_pixels(masks):
    expected = np.zeros((len(masks), 4), dtype=np.float32)
    for i, mask in enumerate(masks):
        ys, xs = np.nonzero(mask)
        if len(xs):
            expected[i] = xs.min(), ys.min(), xs.max() + 1, ys.max() + 1
    boxes = BitMasks(masks).get_bounding_boxes()
    assert isinstance(boxes, Boxes) and boxes.tensor.dtype == torch.float32
    np.testing.assert_array_equal(boxes.tensor.numpy(), expected)
    np.testing.assert_array_equal(BitMasks(masks).nonempty().numpy(), masks.any(axis=(1, 2)))


def test_bounding_boxes_of_masks_without_pixels_of_their_own():
    assert BitMasks(torch.zeros(2, 0, 5)).get_bounding_boxes().tensor.tolist() == [[0] * 4] * 2
    assert len(BitMasks(torch.zeros(0, 4, 5)).get_bounding_boxes()) == 0


@settings(max_examples=40, deadline=None)
@given(st.lists(rectangles(), min_size=1, max_size=3))
def test_a_mask_of_rectangles_is_their_union_and_boxes_agree(boxes):
    expected = np.zeros((20, 20), dtype=bool)
    for x0, y0, x1, y1 in boxes:
        expected[y0:y1, x0:x1] = True
    polygons = [corners(box) for box in boxes]
    mask = polygons_to_bitmask(polygons, 20, 20)
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, expected)
    from_bits = BitMasks(mask[None]).get_bounding_boxes().tensor
    assert torch.equal(from_bits, PolygonMasks([polygons]).get_bounding_boxes().tensor)


@settings(max_examples=40, deadline=None)
@given(arrays(np.float64, (2, 5, 2), elements=st.floats(0, 30)))
def test_polygons_rasterize_as_in_the_coco_api(points):
    polygons = [polygon.reshape(-1) for polygon in points]
    rles = mask_util.frPyObjects([polygon.tolist() for polygon in polygons], 30, 40)
    expected = mask_util.decode(mask_util.merge(rles)).astype(bool)
    np.testing.assert_array_equal(polygons_to_bitmask(polygons, 30, 40), expected)
    bitmasks = BitMasks.from_polygon_masks(PolygonMasks([polygons, []]), 30, 40)
    np.testing.assert_array_equal(bitmasks.tensor.numpy(), [expected, np.zeros((30, 40))])


def test_bitmasks_from_nothing_and_from_plain_lists():
    assert BitMasks.from_polygon_masks([], 10, 12).tensor.shape == (0, 10, 12)
    masks = BitMasks.from_polygon_masks([[np.array(SQUARE, dtype=np.float32)]], 8, 9)
    assert masks.image_size == (8, 9) and masks.tensor.sum() == 16
    assert not polygons_to_bitmask([], 3, 4).any()


def test_bitmasks_index_iterate_join_and_move():
    masks = BitMasks(torch.arange(3)[:, None, None].expand(3, 4, 5))
    assert masks.tensor.dtype == torch.bool and len(masks) == 3
    assert masks[1].tensor.shape == (1, 4, 5)
    assert masks[1:].nonempty().tolist() == [True, True]
    assert masks[torch.tensor([True, False, True])].nonempty().tolist() == [False, True]
    assert masks[[2, 2, 0]].nonempty().tolist() == [True, True, False]
    assert [mask.shape for mask in masks] == [(4, 5)] * 3
    assert len(BitMasks.cat([masks, masks[:1]])) == 4
    assert masks.to("cpu").device == torch.device("cpu")
    assert repr(masks) == "BitMasks(num_instances=3)"
    with pytest.raises(ValueError, match=r"\(N, H, W\)"):
        BitMasks(torch.zeros(4, 5))
    with pytest.raises(ValueError, match="shape"):
        masks[torch.zeros(3, 4, 5, dtype=torch.bool)]
    with pytest.raises(ValueError, match="list"):
        BitMasks.cat([])


def test_bitmask_crop_and_resize_at_mask_resolution_is_a_crop():
    torch.manual_seed(0)
    masks = BitMasks(torch.rand(2, 20, 20) > 0.5)
    boxes = torch.tensor([[2.0, 3.0, 10.0, 11.0], [12.0, 0.0, 20.0, 8.0]])
    got = masks.crop_and_resize(boxes, 8)
    assert got.dtype == torch.bool
    assert torch.equal(got, torch.stack([masks.tensor[0, 3:11, 2:10], masks.tensor[1, :8, 12:]]))
    assert masks[:0].crop_and_resize(boxes[:0], 8).shape == (0, 8, 8)
    with pytest.raises(ValueError, match="1 boxes, 2 masks"):
        masks.crop_and_resize(boxes[:1], 8)


@settings(max_examples=30, deadline=None)
@given(rectangles(), st.integers(5, 28))
def test_both_kinds_of_masks_crop_alike(box, mask_size):
    polygons = PolygonMasks([[np.array(TRIANGLE) * 2.5]])
    bits = BitMasks.from_polygon_masks(polygons, 20, 20)
    boxes = torch.tensor([box], dtype=torch.float32)
    from_polygons = polygons.crop_and_resize(boxes, mask_size)
    from_bits = bits.crop_and_resize(boxes, mask_size)
    assert from_polygons.shape == from_bits.shape == (1, mask_size, mask_size)
    # They may differ along the diagonal, by one image pixel.
    image_pixel = mask_size / min(box[2] - box[0], box[3] - box[1])
    differing = (from_polygons != from_bits).sum().item()
    assert differing <= 2 * mask_size * max(image_pixel, 1)


def test_polygon_crop_scales_each_axis_by_itself():
    square = [np.array(SQUARE)]
    got = rasterize_polygons_within_box(square, np.array([1.0, 1.0, 9.0, 5.0]), 16)
    expected = torch.zeros(16, 16, dtype=torch.bool)
    expected[:, :8] = True
    assert torch.equal(got, expected)
    np.testing.assert_array_equal(square[0], SQUARE)  # the input is left alone
    flat = rasterize_polygons_within_box(square, np.array([2.0, 2.0, 2.0, 2.0]), 4)
    assert flat.shape == (4, 4)
    assert PolygonMasks([]).crop_and_resize(torch.zeros(0, 4), 7).shape == (0, 7, 7)
    with pytest.raises(ValueError, match="2 boxes, 1 masks"):
        PolygonMasks([square]).crop_and_resize(torch.zeros(2, 4), 7)


@pytest.mark.parametrize("side", [5.0, 10.0, 1000.0])
def test_polygon_area(side):
    square, triangle = [0, 0, 0, side, side, side, side, 0], [0, 0, 0, side, side, side]
    areas = PolygonMasks([[square], [triangle], [square, triangle], []]).area()
    assert areas.tolist() == [side**2, side**2 / 2, side**2 * 1.5, 0]
    assert polygon_area(np.array(square[0::2]), np.array(square[1::2])) == side**2
    assert PolygonMasks([]).area().shape == (0,)


def test_polygon_masks_convert_and_check_their_input():
    masks = PolygonMasks([[torch.tensor(SQUARE), TRIANGLE], []])
    assert all(polygon.dtype == np.float64 for polygon in masks.polygons[0])
    assert masks.nonempty().tolist() == [True, False]
    assert masks.get_bounding_boxes().tensor.tolist() == [[0, 0, 8, 8], [0, 0, 0, 0]]
    assert masks.to("cuda:7") is masks and masks.device == torch.device("cpu")
    with pytest.raises(ValueError, match="list .instances. of lists"):
        PolygonMasks(np.zeros((1, 1, 6)))
    with pytest.raises(ValueError, match="list around a single polygon"):
        PolygonMasks([np.zeros(6)])
    for wrong in ([0.0] * 4, [0.0] * 7, [[0.0] * 6]):
        with pytest.raises(ValueError, match="at least three corners"):
            PolygonMasks([[wrong]])


@pytest.mark.parametrize(
    "index,expected",
    [
        (1, [1]),
        (-1, [3]),
        (slice(1, 3), [1, 2]),
        (slice(0, 0), []),
        ([3, 0], [3, 0]),
        ([], []),
        (torch.tensor([2, 2]), [2, 2]),
        (torch.tensor(2), [2]),
        (torch.tensor([-1], dtype=torch.int32), [3]),
        (torch.tensor([True, False, False, True]), [0, 3]),
        (torch.zeros(4, dtype=torch.bool), []),
        (np.array([True, False, True, False]), [0, 2]),
        (np.array([1, 3]), [1, 3]),
    ],
)
def test_polygon_masks_take_every_kind_of_index(index, expected):
    masks = PolygonMasks([[np.array(TRIANGLE) + i] for i in range(4)])
    assert [instance[0][0] for instance in masks[index]] == expected


def test_polygon_masks_refuse_other_indices_and_join():
    masks = PolygonMasks([[SQUARE], [TRIANGLE]])
    for wrong in (5, torch.tensor([0.5]), torch.tensor([True]), [4]):
        with pytest.raises(IndexError):
            masks[wrong]
    joined = PolygonMasks.cat([masks, masks[:1]])
    assert len(joined) == 3 and repr(joined) == "PolygonMasks(num_instances=3)"
    with pytest.raises(ValueError, match="list"):
        PolygonMasks.cat([])


def test_roi_masks_are_pasted_into_their_boxes():
    masks = ROIMasks(torch.ones(2, 4, 4))
    boxes = Boxes([[1.0, 1.0, 3.0, 3.0], [0.0, 2.0, 4.0, 3.0]])
    bits = masks.to_bitmasks(boxes, 4, 5)
    assert torch.equal(bits.get_bounding_boxes().tensor, boxes.tensor)
    assert torch.equal(bits.tensor, paste_masks_in_image(masks.tensor, boxes, (4, 5)))
    assert len(masks[:1]) == 1 and masks.to("cpu").device == torch.device("cpu")
    assert repr(masks) == "ROIMasks(num_instances=2)"
    with pytest.raises(ValueError, match=r"\(N, M, M\)"):
        ROIMasks(torch.ones(4, 4))
