"""Operators on boxes and masks: NMS, RoIAlign, pasting, box losses, deformable convolutions."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from detectron2.layers import (
    DeformConv,
    ModulatedDeformConv,
    ROIAlign,
    batched_nms,
    ciou_loss,
    diou_loss,
    nms,
    paste_masks_in_image,
    roi_align,
)
from detectron2.structures import BitMasks, Boxes, PolygonMasks, pairwise_iou
from detectron2.utils.testing import random_boxes


def test_batched_nms_is_greedy_nms_of_each_group():
    torch.manual_seed(0)
    boxes, scores, groups = random_boxes(200, 60), torch.rand(200), torch.randint(5, (200,))
    kept: list[int] = []
    for i in scores.argsort(descending=True).tolist():
        rivals = [j for j in kept if groups[j] == groups[i]]
        if not rivals or pairwise_iou(Boxes(boxes[rivals]), Boxes(boxes[i : i + 1])).max() <= 0.5:
            kept.append(i)
    assert batched_nms(boxes, scores, groups, 0.5).tolist() == kept
    alone = batched_nms(boxes, scores, torch.zeros_like(groups), 0.5)
    assert torch.equal(nms(boxes, scores, 0.5), alone)
    nothing = batched_nms(boxes[:0], scores[:0], groups[:0], 0.5)
    assert nothing.dtype == torch.int64 and len(nothing) == 0
    with pytest.raises(ValueError, match="shape"):
        batched_nms(boxes[:, :3], scores, groups, 0.5)


def align(image: torch.Tensor, box: list[float], size: tuple[int, int], aligned: bool = True):
    rois = torch.tensor([[0.0, *box]])
    return ROIAlign(size, 1.0, 0, aligned=aligned)(image[None, None], rois)[0, 0]


@pytest.mark.parametrize("aligned,shift", [(True, 0.5), (False, 0.0)])
def test_roi_align_of_a_linear_map_gives_it_at_the_cell_centers(aligned, shift):
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    got = align(10 * y + x, [2, 1, 6, 5], (2, 4), aligned)
    centers_y, centers_x = torch.tensor([2.0, 4.0]) - shift, torch.arange(2.5, 6) - shift
    torch.testing.assert_close(got, 10 * centers_y[:, None] + centers_x)


def test_roi_align_is_invariant_to_resizing():
    torch.manual_seed(0)
    image = torch.rand(30, 30) * 100
    half = F.avg_pool2d(image[None], 2)[0]  # bilinear resizing by 1/2
    large, small = align(image, [10, 10, 20, 20], (5, 5)), align(half, [5, 5, 10, 10], (5, 5))
    torch.testing.assert_close(large, small, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_roi_align_of_half_precision_keeps_the_corners_of_boxes(dtype):
    """Corners near 1000 would be rounded to steps of 0.5 or 4 pixels."""
    torch.manual_seed(0)
    image = torch.randn(1, 2, 64, 64).to(dtype)
    rois = torch.tensor([[0, 900.3, 801.7, 989.2, 970.9], [0, 33.3, 21.1, 1001.4, 777.7]])
    pool = ROIAlign((7, 7), 1 / 16, 2)
    want = pool(image.float(), rois)
    got = pool(image, rois)
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), want, rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_roi_align_of_empty_boxes_and_batches():
    assert (align(torch.rand(5, 5), [3, 4, 5, 4], (7, 7)) == 0).all()
    pool = ROIAlign((7, 7), 0.5, 2)
    assert pool(torch.zeros(0, 3, 10, 10), torch.zeros(0, 5)).shape == (0, 3, 7, 7)
    features = torch.rand(1, 3, 10, 10, requires_grad=True)
    pool(features, torch.zeros(0, 5)).sum().backward()
    assert (features.grad == 0).all()
    with pytest.raises(ValueError, match=r"\(R, 5\)"):
        pool(features, torch.zeros(2, 4))
    text = "ROIAlign(output_size=(7, 7), spatial_scale=0.5, sampling_ratio=2, aligned=True)"
    assert repr(pool) == text
    rois = torch.tensor([[0, 1.0, 2.0, 8.0, 9.0]])
    assert torch.equal(pool(features, rois), roi_align(features, rois, (7, 7), 0.5, 2, True))


def paste_slowly(mask: np.ndarray, box: list[float], height: int, width: int) -> np.ndarray:
    """Bilinear value of a mask, zero outside, at each pixel center; one pixel after the other."""
    side = len(mask)
    padded = np.pad(mask, 1)
    image = np.zeros((height, width))
    for y, x in np.ndindex(height, width):
        u = (x + 0.5 - box[0]) / (box[2] - box[0]) * side - 0.5 + 1  # column in `padded`
        v = (y + 0.5 - box[1]) / (box[3] - box[1]) * side - 0.5 + 1
        column, row = math.floor(u), math.floor(v)
        if 0 <= column <= side and 0 <= row <= side:
            a, b = u - column, v - row
            patch = padded[row : row + 2, column : column + 2]
            image[y, x] = np.array([1 - b, b]) @ patch @ np.array([1 - a, a])
    return image


@settings(max_examples=40, deadline=None)
@given(
    st.floats(-8, 14), st.floats(-8, 14), st.floats(0.3, 25), st.floats(0.3, 25), st.integers(1, 9)
)
def test_pasting_samples_masks_at_pixel_centers(x0, y0, width, height, side):
    mask = np.random.RandomState(side).rand(side, side).astype(np.float32)
    box = [x0, y0, x0 + width, y0 + height]
    expected = paste_slowly(mask, box, 12, 15)
    masks, boxes = torch.from_numpy(mask)[None], torch.tensor([box])
    values = paste_masks_in_image(masks, boxes, (12, 15), threshold=-1)[0]
    assert values.dtype == torch.uint8
    assert np.abs(values.numpy() - expected * 255).max() <= 1.01  # truncated
    binary = paste_masks_in_image(masks, Boxes(boxes), (12, 15), threshold=0.4)[0].numpy()
    assert binary.dtype == bool
    clear = np.abs(expected - 0.4) > 1e-3
    np.testing.assert_array_equal(binary[clear], (expected >= 0.4)[clear])


def test_pasting_many_masks_and_none():
    torch.manual_seed(0)
    masks, boxes = torch.rand(7, 28, 28), random_boxes(7, 40)
    together = paste_masks_in_image(masks, boxes, (41, 43))
    for i in range(7):
        alone = paste_masks_in_image(masks[i : i + 1], boxes[i : i + 1], (41, 43))
        assert torch.equal(alone[0], together[i])
    nothing = paste_masks_in_image(masks[:0], Boxes([]), (41, 43))
    assert nothing.shape == (0, 41, 43) and nothing.dtype == torch.bool
    full = paste_masks_in_image(torch.ones(1, 3, 3, dtype=torch.bool), boxes[:1], (41, 43))
    assert full.any()


def test_boxes_without_extent_or_outside_of_the_image_paste_nothing():
    boxes = torch.tensor([[3.0, 3.0, 3.0, 8.0], [-9.0, 2.0, -4.0, 5.0], [30.0, 30.0, 40.0, 50.0]])
    assert not paste_masks_in_image(torch.ones(3, 4, 4), boxes, (10, 10)).any()
    with pytest.raises(ValueError, match="square"):
        paste_masks_in_image(torch.ones(3, 4, 5), boxes, (10, 10))
    with pytest.raises(ValueError, match="2 boxes and 3 masks"):
        paste_masks_in_image(torch.ones(3, 4, 4), boxes[:2], (10, 10))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_pasting_on_a_gpu_equals_the_cpu():
    torch.manual_seed(0)
    masks, boxes = torch.rand(50, 28, 28), random_boxes(50, 200)
    expected = paste_masks_in_image(masks, boxes, (210, 190))
    got = paste_masks_in_image(masks.cuda(), boxes.cuda(), (210, 190)).cpu()
    assert (got != expected).float().mean() < 1e-5


@pytest.mark.parametrize("side", [28, 56])
def test_cropping_and_pasting_back_keeps_a_mask(side):
    angle = torch.linspace(0, 2 * math.pi, 60, dtype=torch.float64)[:-1]
    circle = torch.stack([50.3 + 30 * angle.cos(), 40.7 + 22 * angle.sin()], dim=1).flatten()
    polygons = PolygonMasks([[circle]])
    image = BitMasks.from_polygon_masks(polygons, 90, 100).tensor[0]
    box = polygons.get_bounding_boxes().tensor

    def iou(pasted: torch.Tensor) -> float:
        return ((pasted & image).sum() / (pasted | image).sum()).item()

    for small in (polygons, BitMasks(image[None])):
        mask = small.crop_and_resize(box, side).float()
        assert iou(paste_masks_in_image(mask, box, (90, 100))[0]) > 0.96


BOX, HALF = torch.tensor([-1.0, -1, 1, 1]), torch.tensor([0.0, -1, 1, 1])
UNIT, NEXT = torch.tensor([0.0, 0, 1, 1]), torch.tensor([1.0, 1, 2, 2])


def test_distance_iou_loss_of_known_boxes():
    assert diou_loss(BOX, BOX).item() == pytest.approx(0)
    assert diou_loss(BOX, HALF).item() == pytest.approx(1 - 0.5 + 0.25 / 8)
    assert diou_loss(UNIT, NEXT).item() == pytest.approx(1 + 2 / 8)
    pairs = torch.stack([BOX, UNIT]), torch.stack([HALF, NEXT])
    assert diou_loss(*pairs).tolist() == pytest.approx([0.53125, 1.25])
    assert diou_loss(*pairs, reduction="sum").item() == pytest.approx(1.78125)
    assert diou_loss(*pairs, reduction="mean").item() == pytest.approx(0.890625)
    assert diou_loss(pairs[0][:0], pairs[1][:0], reduction="mean").item() == 0


def test_complete_iou_loss_adds_the_aspect_ratio_term():
    difference = 4 / math.pi**2 * (math.atan(0.5) - math.atan(1)) ** 2
    aspect_term = difference**2 / (1 - 0.5 + difference)
    assert ciou_loss(BOX, BOX).item() == pytest.approx(0)
    assert ciou_loss(BOX, HALF).item() == pytest.approx(0.53125 + aspect_term)
    pairs = torch.stack([BOX, UNIT]), torch.stack([HALF, NEXT])
    expected = 0.53125 + aspect_term + 1.25
    assert ciou_loss(*pairs, reduction="sum").item() == pytest.approx(expected)
    assert ciou_loss(*pairs, reduction="mean").item() == pytest.approx(expected / 2)


def test_deformable_convolution_without_offsets_is_a_convolution():
    torch.manual_seed(0)
    x = torch.rand(2, 4, 7, 6)
    conv = DeformConv(4, 6, 3, stride=2, padding=2, dilation=2, groups=2, deformable_groups=2)
    expected = F.conv2d(x, conv.weight, stride=2, padding=2, dilation=2, groups=2)
    zeros = torch.zeros(2, 36, *expected.shape[-2:])
    torch.testing.assert_close(conv(x, zeros), expected)
    modulated = ModulatedDeformConv(4, 6, 3, padding=1, activation=F.relu)
    modulated.bias.data.uniform_()
    half = modulated(x, torch.zeros(2, 18, 7, 6), torch.full((2, 9, 7, 6), 0.5))
    plain = F.conv2d(x, modulated.weight * 0.5, modulated.bias, padding=1)
    torch.testing.assert_close(half, plain.relu())


def test_deformable_offsets_are_y_then_x_in_input_pixels():
    x = torch.arange(25.0).view(1, 1, 5, 5)
    conv = DeformConv(1, 1, 1)
    conv.weight.data.fill_(1)
    offset = torch.zeros(1, 2, 5, 5)
    offset[:, 0] = 1.5  # downwards
    got = conv(x, offset)[0, 0]
    torch.testing.assert_close(got[:3], x[0, 0, :3] + 1.5 * 5)


@pytest.mark.parametrize("kernel_size", [3, 5])
def test_deformable_convolution_of_inputs_smaller_than_the_kernel(kernel_size):
    side, taps = kernel_size - 1, kernel_size**2
    x, offset = torch.rand(1, 1, side, side), torch.randn(1, 2 * taps, side, side)
    assert DeformConv(1, 1, kernel_size, padding=kernel_size // 2)(x, offset).shape == x.shape


def test_deformable_convolution_of_an_empty_batch():
    conv = ModulatedDeformConv(3, 5, 3, padding=1, norm=torch.nn.BatchNorm2d(5).eval())
    inputs = torch.zeros(0, 3, 8, 8), torch.zeros(0, 18, 8, 8), torch.zeros(0, 9, 8, 8)
    assert conv(*inputs).shape == (0, 5, 8, 8)


def test_deformable_convolution_refuses_wrong_shapes():
    x = torch.rand(1, 1, 3, 3)
    with pytest.raises(RuntimeError, match="18 channels, got 9"):
        DeformConv(1, 1, 3, padding=1)(x, torch.randn(1, 9, 3, 3))
    modulated = ModulatedDeformConv(1, 1, 3, padding=1, bias=False)
    with pytest.raises(RuntimeError):
        modulated(x, torch.randn(1, 18, 3, 3), torch.ones(1, 18, 3, 3))
    with pytest.raises(ValueError, match="no bias"):
        DeformConv(1, 1, 3, bias=True)
    with pytest.raises(ValueError, match="groups 2"):
        ModulatedDeformConv(3, 4, 3, groups=2)


def test_deformable_convolutions_describe_themselves():
    assert repr(DeformConv(3, 10, kernel_size=3, padding=1, deformable_groups=2)) == (
        "DeformConv(in_channels=3, out_channels=10, kernel_size=(3, 3), stride=(1, 1), "
        "padding=(1, 1), dilation=(1, 1), groups=1, deformable_groups=2, bias=False)"
    )
    assert repr(ModulatedDeformConv(3, 10, kernel_size=3, padding=1, deformable_groups=2)) == (
        "ModulatedDeformConv(in_channels=3, out_channels=10, kernel_size=(3, 3), stride=1, "
        "padding=1, dilation=1, groups=1, deformable_groups=2, bias=True)"
    )
