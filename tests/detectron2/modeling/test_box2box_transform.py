"""Box deltas against their formulas, and the losses on them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import ops

from detectron2.modeling.box_regression import (
    BOX_REG_LOSS_TYPES,
    Box2BoxTransform,
    box_regression_losses,
)
from detectron2.utils.testing import random_boxes

coordinate = st.floats(0, 500, width=32)
side = st.floats(1, 500, width=32)
box = st.tuples(coordinate, coordinate, side, side).map(
    lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]]
)


@settings(max_examples=50, deadline=None)
@given(box, box)
def test_deltas_follow_the_formula_and_lead_to_the_target(source, target):
    weights = (10.0, 20.0, 5.0, 2.0)
    sources, targets = (torch.tensor([b], dtype=torch.float64) for b in (source, target))
    transform = Box2BoxTransform(weights, scale_clamp=math.inf)
    (deltas,) = transform.get_deltas(sources, targets).tolist()
    (x, y, w, h), (tx, ty, tw, th) = (
        ((b[0] + b[2]) / 2, (b[1] + b[3]) / 2, b[2] - b[0], b[3] - b[1]) for b in (source, target)
    )
    want = [
        *(10 * (tx - x) / w, 20 * (ty - y) / h),
        *(5 * math.log(tw / w), 2 * math.log(th / h)),
    ]
    assert deltas == pytest.approx(want, rel=1e-6, abs=1e-6)
    back = transform.apply_deltas(torch.tensor([deltas], dtype=torch.float64), sources)
    torch.testing.assert_close(back, targets, rtol=1e-9, atol=1e-9)


def test_each_class_has_its_own_deltas():
    torch.manual_seed(0)
    boxes, deltas = random_boxes(6), torch.randn(6, 12)
    transform = Box2BoxTransform((1.0, 1.0, 1.0, 1.0))
    together = transform.apply_deltas(deltas, boxes)
    for k in range(3):
        alone = transform.apply_deltas(deltas[:, 4 * k : 4 * k + 4], boxes)
        assert torch.equal(together[:, 4 * k : 4 * k + 4], alone)
    assert transform.apply_deltas(torch.zeros(0, 12), boxes[:0]).shape == (0, 12)


def test_growth_is_bounded_and_half_precision_is_widened():
    source = torch.tensor([[0.0, 0.0, 16.0, 16.0]])
    deltas = torch.tensor([[0.0, 0.0, 100.0, 100.0]], dtype=torch.float16)
    grown = Box2BoxTransform((1.0, 1.0, 1.0, 1.0)).apply_deltas(deltas, source)
    assert grown.dtype == torch.float32
    assert (grown[0, 2:] - grown[0, :2]).tolist() == pytest.approx([1000, 1000])


def test_boxes_without_extent_are_refused():
    flat = torch.tensor([[5.0, 5.0, 5.0, 9.0]])
    with pytest.raises(ValueError, match="wider and higher than 0"):
        Box2BoxTransform((1.0, 1.0, 1.0, 1.0)).get_deltas(flat, flat)


def test_losses_equal_torch_and_torchvision():
    torch.manual_seed(1)
    sources, targets, deltas = random_boxes(8), random_boxes(8), torch.randn(8, 4)
    transform = Box2BoxTransform((10.0, 10.0, 5.0, 5.0))
    arguments = (deltas, sources, targets, transform)
    target_deltas = transform.get_deltas(sources, targets)
    smooth = torch.nn.functional.smooth_l1_loss(
        deltas, target_deltas, beta=0.5, reduction="none"
    ).sum(dim=1)
    torch.testing.assert_close(box_regression_losses(*arguments, "smooth_l1", 0.5), smooth)
    absolute = (deltas - target_deltas).abs().sum(dim=1)
    torch.testing.assert_close(box_regression_losses(*arguments), absolute)
    boxes = transform.apply_deltas(deltas, sources)
    for name, loss in (
        ("giou", ops.generalized_box_iou_loss),
        ("diou", ops.distance_box_iou_loss),
        ("ciou", ops.complete_box_iou_loss),
    ):
        torch.testing.assert_close(box_regression_losses(*arguments, name), loss(boxes, targets))


@pytest.mark.parametrize("loss_type", BOX_REG_LOSS_TYPES)
def test_losses_of_no_box_are_empty(loss_type):
    none = torch.zeros(0, 4)
    transform = Box2BoxTransform((1.0, 1.0, 1.0, 1.0))
    assert box_regression_losses(none, none, none, transform, loss_type).shape == (0,)


def test_an_unknown_loss_is_named():
    none = torch.zeros(0, 4)
    with pytest.raises(ValueError, match="'l2'; expected one of"):
        box_regression_losses(none, none, none, Box2BoxTransform((1.0,) * 4), "l2")
