"""The second stage: sampling of proposals, losses, and results of both kinds of heads."""

import pytest
import torch

from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_box_head, build_proposal_generator, build_roi_heads
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.roi_heads import (
    FastRCNNConvFCHead,
    Res5ROIHeads,
    ROIHeads,
    StandardROIHeads,
    select_foreground_proposals,
)
from detectron2.structures import BitMasks, Boxes, ImageList, Instances, pairwise_iou
from detectron2.utils.events import EventStorage
from detectron2.utils.testing import random_boxes

# Computed with Detectron2 for the network and inputs of the test below, seed 121.
LOSSES_OF_DETECTRON2 = {
    "loss_cls": 4.5253729820251465,
    "loss_box_reg": 0.009785720147192478,
    "loss_mask": 0.693184494972229,
    "loss_rpn_cls": 0.08186662942171097,
    "loss_rpn_loc": 0.1104838103055954,
}


def test_losses_are_those_of_detectron2():
    """RPN and heads on one map: an end-to-end check of matching, sampling and losses."""
    cfg = get_cfg()
    cfg.MODEL.MASK_ON = True
    cfg.MODEL.ROI_BOX_HEAD.NAME, cfg.MODEL.ROI_BOX_HEAD.NUM_FC = "FastRCNNConvFCHead", 2
    boxes_by_class = [
        {2: (1.0, 1, 3, 3), 1: (2, 2, 6, 6)},
        {1: (1.0, 5, 2, 8), 2: (7, 3, 10, 5)},
    ]
    torch.manual_seed(121)  # the order of the random draws is part of the reference
    images = ImageList(torch.rand(2, 20, 30), [(10, 10), (20, 30)])
    features = {"res4": torch.rand(2, 1024, 1, 2)}
    truth = [
        Instances(
            (15, 15),
            gt_boxes=Boxes(torch.tensor(list(own.values()))),
            gt_classes=torch.tensor(list(own)),
            gt_masks=BitMasks(torch.rand(2, 15, 15) > 0.5),
        )
        for own in boxes_by_class
    ]
    shapes = {"res4": ShapeSpec(channels=1024, stride=16)}
    rpn, heads = build_proposal_generator(cfg, shapes), StandardROIHeads(cfg, shapes)
    with EventStorage():
        proposals, losses = rpn(images, features, truth)
        losses |= heads(images, features, proposals, truth)[1]
    got = {name: loss.item() for name, loss in losses.items()}
    assert got == pytest.approx(LOSSES_OF_DETECTRON2, rel=1e-4)


def make_base(**kwargs):
    arguments = {
        "num_classes": 5,
        "batch_size_per_image": 16,
        "positive_fraction": 0.25,
        "proposal_matcher": Matcher([0.3, 0.5], [0, -1, 1]),
    }
    return ROIHeads(**arguments | kwargs)


def make_proposals(count, size=(60, 60)):
    return Instances(
        size, proposal_boxes=Boxes(random_boxes(count, 60)), objectness_logits=torch.randn(count)
    )


def make_truth(size=(60, 60)):
    return Instances(
        size,
        gt_boxes=Boxes(torch.tensor([[5.0, 5, 30, 25], [20, 20, 55, 50]])),
        gt_classes=torch.tensor([4, 1]),
        gt_masks=BitMasks(torch.rand(2, *size) > 0.5),
        gt_marks=torch.tensor([10, 11]),
        other=torch.zeros(2),
    )


def test_samples_get_the_fields_of_their_matches():
    torch.manual_seed(0)
    truth, proposals = make_truth(), make_proposals(60)
    heads = make_base()
    with EventStorage() as storage:
        (sampled,) = heads.label_and_sample_proposals([proposals], [truth])
    assert len(sampled) == 16 and not sampled.has("other")
    quality = pairwise_iou(truth.gt_boxes, sampled.proposal_boxes)
    best, match = quality.max(dim=0)
    foreground = sampled.gt_classes != 5
    assert (best[foreground] >= 0.5).all() and (best[~foreground] < 0.3).all()
    assert 0 < foreground.sum() <= 4
    assert torch.equal(sampled.gt_classes[foreground], truth.gt_classes[match[foreground]])
    assert torch.equal(sampled.gt_marks[foreground], 10 + match[foreground])
    assert torch.equal(
        sampled.gt_boxes.tensor[foreground], truth.gt_boxes.tensor[match][foreground]
    )
    latest = storage.latest()
    assert latest["roi_head/num_fg_samples"][0] == foreground.sum()
    assert latest["roi_head/num_bg_samples"][0] == (~foreground).sum()


def test_ground_truth_is_sampled_too_if_wanted():
    far = Instances(
        (60, 60), proposal_boxes=Boxes(torch.zeros(0, 4)), objectness_logits=torch.zeros(0)
    )
    with EventStorage():
        (with_truth,) = make_base().label_and_sample_proposals([far], [make_truth()])
        (without,) = make_base(proposal_append_gt=False).label_and_sample_proposals(
            [far], [make_truth()]
        )
    assert sorted(with_truth.gt_classes.tolist()) == [1, 4] and len(without) == 0


def test_an_image_without_ground_truth_is_background():
    with EventStorage():
        (sampled,) = make_base().label_and_sample_proposals(
            [make_proposals(30)], [make_truth()[:0]]
        )
    assert sampled.gt_classes.tolist() == [5] * 16 and not sampled.has("gt_boxes")


def test_foreground_selection():
    proposals = [Instances((5, 5), gt_classes=torch.tensor(c)) for c in ([0, 3, -1], [3])]
    foreground, masks = select_foreground_proposals(proposals, bg_label=3)
    assert [len(x) for x in foreground] == [1, 0]
    assert [m.tolist() for m in masks] == [[True, False, False], [False]]
    with pytest.raises(ValueError, match="gt_classes"):
        select_foreground_proposals([Instances((5, 5))], 3)


def test_box_head_layers_and_output():
    shape = ShapeSpec(channels=3, height=4, width=5)
    both = FastRCNNConvFCHead(shape, conv_dims=[6, 7], fc_dims=[8, 9], conv_norm="BN")
    x = torch.randn(2, 3, 4, 5)
    assert both(x).shape == (2, 9) and both.output_shape == ShapeSpec(channels=9)
    assert list(both.state_dict())[:2] == ["conv1.weight", "conv1.norm.weight"]
    assert both.fc1.in_features == 7 * 4 * 5
    convs = FastRCNNConvFCHead(shape, conv_dims=[6], fc_dims=[])
    assert convs(x).shape == (2, *convs.output_shape[:3]) == (2, 6, 4, 5)
    with pytest.raises(ValueError, match="needs a layer"):
        FastRCNNConvFCHead(shape, conv_dims=[], fc_dims=[])
    cfg = get_cfg()
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 11
    assert build_box_head(cfg, shape)(x).shape == (2, 11)


def small_heads(name, mask_on=True, **options):
    cfg = get_cfg()
    cfg.MODEL.MASK_ON = mask_on
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 8
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 2
    node = cfg.MODEL.ROI_HEADS
    node.NAME, node.NUM_CLASSES, node.BATCH_SIZE_PER_IMAGE = name, 5, 16
    node.SCORE_THRESH_TEST = 0.0
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 4
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 4
    cfg.merge_from_list([item for pair in options.items() for item in pair])
    torch.manual_seed(0)
    heads = build_roi_heads(cfg, {"res4": ShapeSpec(channels=32, stride=4)})
    features = {"res4": torch.randn(2, 32, 15, 15)}
    return heads, features


@pytest.mark.parametrize("name", ["StandardROIHeads", "Res5ROIHeads"])
@pytest.mark.parametrize("mask_on", [True, False])
def test_heads_give_losses_in_training_and_detections_in_testing(name, mask_on):
    heads, features = small_heads(name, mask_on)
    assert isinstance(heads, StandardROIHeads if name[0] == "S" else Res5ROIHeads)
    images = ImageList(torch.zeros(2, 3, 60, 60), [(60, 60), (50, 60)])
    proposals = [make_proposals(20), make_proposals(20, (50, 60))]
    truth = [make_truth(), make_truth()[:0]]
    with EventStorage():
        _, losses = heads(images, features, proposals, truth)
    names = {"loss_cls", "loss_box_reg", *(["loss_mask"] if mask_on else [])}
    assert losses.keys() == names
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in heads.parameters() if p.requires_grad)

    detections, losses = heads.eval()(images, features, proposals)
    assert losses == {} and len(detections) == 2 and len(detections[0]) > 0
    assert detections[1].image_size == (50, 60)
    assert detections[0].has("pred_masks") == mask_on
    given = [Instances(d.image_size, pred_boxes=d.pred_boxes, pred_classes=d.pred_classes)
             for d in detections]  # fmt: skip
    again = heads.forward_with_given_boxes(features, given)
    if mask_on:
        torch.testing.assert_close(again[0].pred_masks, detections[0].pred_masks)


def test_masks_train_on_predicted_boxes_if_wanted():
    heads, features = small_heads(
        "StandardROIHeads", **{"MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES": True}
    )
    proposals, truth = make_proposals(20), make_truth()
    one = {"res4": features["res4"][:1]}
    with EventStorage():
        sampled, _ = heads(None, one, [proposals], [truth])
        predictions = heads.box_predictor(
            heads.box_head(heads.box_pooler([one["res4"]], [sampled[0].proposal_boxes]))
        )
    assert len(predictions[0]) == 16
    joined = torch.cat([proposals.proposal_boxes.tensor, truth.gt_boxes.tensor])
    assert not (sampled[0].proposal_boxes.tensor[:, None] == joined).all(dim=2).any(dim=1).all()


def test_misuse_is_named():
    heads, features = small_heads("StandardROIHeads")
    proposals = [make_proposals(3), make_proposals(3)]
    with pytest.raises(ValueError, match="needs 'instances'"):
        heads(None, features, proposals)
    with pytest.raises(ValueError, match="call `eval"):
        heads.forward_with_given_boxes(features, proposals)
    with pytest.raises(ValueError, match="pred_boxes and pred_classes"):
        heads.eval().forward_with_given_boxes(features, proposals)
    with pytest.raises(ValueError, match="take one map"):
        small_heads("Res5ROIHeads", **{"MODEL.ROI_HEADS.IN_FEATURES": "['res4', 'res5']"})
