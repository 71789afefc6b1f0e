"""The mask head: loss against a loop, masks of the predicted class, and pasting."""

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from torch.nn import functional as F

from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_mask_head, detector_postprocess
from detectron2.modeling.roi_heads.mask_head import (
    BaseMaskRCNNHead,
    MaskRCNNConvUpsampleHead,
    mask_rcnn_inference,
    mask_rcnn_loss,
)
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage

SIDE = 7


def foreground(classes, boxes, size=(20, 24)):
    """Instances with random masks, one a region."""
    return Instances(
        size,
        proposal_boxes=Boxes(torch.tensor(boxes)),
        gt_classes=torch.tensor(classes),
        gt_masks=BitMasks(torch.rand(len(classes), *size) > 0.4),
    )


@pytest.mark.parametrize("agnostic", [False, True])
def test_loss_equals_a_loop_over_regions(agnostic):
    torch.manual_seed(0)
    images = [
        foreground([2, 0], [[1.0, 2, 15, 16], [0, 0, 9, 9]]),
        Instances((20, 24), proposal_boxes=Boxes(torch.zeros(0, 4)), gt_classes=torch.zeros(0)),
        foreground([1], [[3.0, 3, 22, 19]]),
    ]
    logits = torch.randn(3, 1 if agnostic else 4, SIDE, SIDE)
    with EventStorage() as storage:
        got = mask_rcnn_loss(logits, images, vis_period=1)
    losses, row, right = [], 0, 0
    for own in images:
        for i in range(len(own)):
            target = own.gt_masks[i].crop_and_resize(own.proposal_boxes[i].tensor, SIDE)[0]
            pred = logits[row, 0 if agnostic else own.gt_classes[i]]
            losses.append(F.binary_cross_entropy_with_logits(pred, target.float()))
            right += ((pred > 0) == target).sum().item()
            row += 1
    torch.testing.assert_close(got, torch.stack(losses).mean())
    accuracy = storage.latest()["mask_rcnn/accuracy"][0]
    assert accuracy == pytest.approx(right / (3 * SIDE * SIDE))
    assert len(storage._vis_data) == 3 and storage._vis_data[0][1].shape == (3, SIDE, 2 * SIDE)


def test_loss_of_no_region_is_zero_and_has_a_gradient():
    logits = torch.randn(0, 3, SIDE, SIDE, requires_grad=True)
    none = foreground([1], [[0.0, 0, 5, 5]])[:0]
    loss = mask_rcnn_loss(logits, [none])
    loss.backward()
    assert loss == 0 and logits.grad is not None


def test_missing_masks_are_named():
    own = foreground([1], [[0.0, 0, 5, 5]])
    own.remove("gt_masks")
    with pytest.raises(ValueError, match="MODEL.MASK_ON False"):
        mask_rcnn_loss(torch.randn(1, 3, SIDE, SIDE), [own])
    with pytest.raises(ValueError, match="square"):
        mask_rcnn_loss(torch.randn(1, 3, SIDE, SIDE + 1), [own])


@pytest.mark.parametrize("agnostic", [False, True])
def test_each_detection_gets_the_mask_of_its_class(agnostic):
    logits = torch.randn(3, 1 if agnostic else 4, SIDE, SIDE)
    images = [Instances((9, 9), pred_classes=torch.tensor(c)) for c in ([3, 0], [], [1])]
    images[1].pred_classes = torch.zeros(0, dtype=torch.int64)
    mask_rcnn_inference(logits, images)
    want = logits[torch.arange(3), [0, 0, 0] if agnostic else [3, 0, 1]].sigmoid()[:, None]
    assert torch.equal(torch.cat([x.pred_masks for x in images]), want)
    assert [len(x.pred_masks) for x in images] == [2, 0, 1]


def test_head_is_built_from_the_config_and_doubles_the_size():
    cfg = get_cfg()
    cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = 2
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 8
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 5
    cfg.MODEL.ROI_MASK_HEAD.NORM = "BN"
    head = build_mask_head(cfg, ShapeSpec(channels=6, height=3, width=3))
    assert isinstance(head, MaskRCNNConvUpsampleHead)
    assert head.layers(torch.randn(4, 6, 3, 3)).shape == (4, 5, 6, 6)
    assert head.mask_fcn1.bias is None and head.mask_fcn2.norm.num_features == 8
    cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK = True
    agnostic = build_mask_head(cfg, ShapeSpec(channels=6))
    assert agnostic.layers(torch.randn(4, 6, 3, 3)).shape == (4, 1, 6, 6)


class ConstantHead(BaseMaskRCNNHead):
    def layers(self, x):
        return x.new_zeros(len(x), 4, SIDE, SIDE, requires_grad=True)


def test_a_head_may_have_other_layers():
    head = ConstantHead(loss_weight=3.0)
    with EventStorage():
        losses = head(torch.zeros(1, 1, 2, 2), [foreground([1], [[0.0, 0, 5, 5]])])
    assert losses["loss_mask"].item() == pytest.approx(3 * np.log(2))
    detection = Instances((9, 9), pred_classes=torch.tensor([2]))
    (result,) = head.eval()(torch.zeros(1, 1, 2, 2), [detection])
    assert result is detection and (result.pred_masks == 0.5).all()


def test_pasted_masks_equal_the_polygon_as_pycocotools_draws_it():
    polygon = np.array([30.0, 12, 95, 40, 70, 88, 22, 70])
    x0, y0, x1, y1 = 22.0, 12.0, 95.0, 88.0
    boxes = Boxes(torch.tensor([[x0, y0, x1, y1]]))
    masks = PolygonMasks([[polygon]]).crop_and_resize(boxes.tensor, 56).float()
    detections = Instances((100, 120), pred_boxes=boxes, pred_masks=masks[:, None])
    (pasted,) = detector_postprocess(detections, 100, 120).pred_masks.numpy()
    rle = mask_util.frPyObjects([polygon.tolist()], 100, 120)
    drawn = mask_util.decode(rle)[:, :, 0].astype(bool)
    iou = (pasted & drawn).sum() / (pasted | drawn).sum()
    assert iou > 0.97  # what is lost is about half a mask cell along the border
