"""Region proposals: targets, losses, and the choice of proposals against slow loops."""

import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou_loss

from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone, build_proposal_generator
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.proposal_generator import RPN, StandardRPNHead
from detectron2.modeling.proposal_generator.proposal_utils import (
    add_ground_truth_to_proposals,
    find_top_rpn_proposals,
)
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from detectron2.utils.events import EventStorage
from detectron2.utils.testing import random_boxes


def seeded_inputs():
    images = ImageList(torch.rand(2, 20, 30), [(10, 10), (20, 30)])
    features = {"res4": torch.rand(2, 1024, 1, 2)}
    truth = Instances((15, 15), gt_boxes=Boxes(torch.tensor([[1.0, 1, 3, 3], [2, 2, 6, 6]])))
    return images, features, [truth[0], truth[1]]


def seeded_rpn(conv_dims):
    torch.manual_seed(121)
    cfg = get_cfg()
    cfg.MODEL.RPN.CONV_DIMS = conv_dims
    return RPN(cfg, build_backbone(cfg).output_shape())


def test_losses_and_proposals_of_a_seeded_network():
    """Figures computed with Detectron2 for this seed, these inputs and this initialization."""
    rpn = seeded_rpn([-1])
    images, features, truth = seeded_inputs()
    with EventStorage():
        proposals, losses = rpn(images, features, truth)
    assert losses["loss_rpn_cls"].item() == pytest.approx(0.08011703193, rel=1e-4)
    assert losses["loss_rpn_loc"].item() == pytest.approx(0.101470276, rel=1e-4)
    assert [p.image_size for p in proposals] == [(10, 10), (20, 30)]
    want = torch.tensor([[0, 0, 10, 10], [7.2702, 0, 10, 10]])
    torch.testing.assert_close(proposals[0].proposal_boxes.tensor, want, atol=1e-4, rtol=0)
    logits = torch.tensor([0.1596, -0.0007])
    torch.testing.assert_close(proposals[0].objectness_logits, logits, atol=1e-4, rtol=0)


def test_several_convolutions():
    rpn = seeded_rpn([64, 64, 64, 64, 64])
    images, features, truth = seeded_inputs()
    with EventStorage():
        _, losses = rpn(images, features, truth)
    assert losses["loss_rpn_cls"].item() == pytest.approx(0.08122821152, rel=1e-4)
    assert losses["loss_rpn_loc"].item() == pytest.approx(0.10064548254, rel=1e-4)
    head = StandardRPNHead(in_channels=4, num_anchors=2, conv_dims=[-1, 8, -1])
    assert [conv.out_channels for conv in head.conv] == [4, 8, 8]
    assert "conv.conv2.weight" in head.state_dict()
    with pytest.raises(ValueError, match=r"conv_dims=\[0\]"):
        StandardRPNHead(in_channels=4, num_anchors=2, conv_dims=[0])


def small_rpn(**kwargs):
    generator = DefaultAnchorGenerator(sizes=[[8], [16]], aspect_ratios=[0.5, 2.0], strides=[4, 8])
    arguments = {
        "in_features": ["p2", "p3"],
        "head": StandardRPNHead(in_channels=3, num_anchors=2),
        "anchor_generator": generator,
        "anchor_matcher": Matcher([0.3, 0.6], [0, -1, 1], allow_low_quality_matches=True),
        "box2box_transform": Box2BoxTransform((1.0, 1.0, 1.0, 1.0)),
        "batch_size_per_image": 1000,
        "positive_fraction": 1.0,
        "pre_nms_topk": (50, 50),
        "post_nms_topk": (20, 20),
    }
    return RPN(**arguments | kwargs)


def small_inputs():
    features = {"p2": torch.randn(2, 3, 8, 10), "p3": torch.randn(2, 3, 4, 5)}
    images = ImageList(torch.zeros(2, 3, 32, 40), [(32, 40), (30, 35)])
    truth = [Instances((32, 40), gt_boxes=Boxes(random_boxes(3, 30))) for _ in range(2)]
    return images, features, truth


@pytest.mark.parametrize("loss_type", ["smooth_l1", "giou"])
def test_losses_equal_a_loop_over_anchors(loss_type):
    torch.manual_seed(0)
    rpn = small_rpn(box_reg_loss_type=loss_type, loss_weight={"loss_rpn_loc": 3.0})
    images, features, truth = small_inputs()
    with EventStorage() as storage:
        _, losses = rpn(images, features, truth)
    logits, deltas = rpn.rpn_head([features["p2"], features["p3"]])
    cls_loss = loc_loss = 0.0
    num_foreground = 0
    for image in range(2):
        row_of_levels = []
        for level, anchors in enumerate(rpn.anchor_generator(list(features.values()))):
            height, width = logits[level].shape[-2:]
            for i, box in enumerate(anchors):
                cell, a = divmod(i, 2)  # two anchors at each cell, row by row
                y, x = divmod(cell, width)
                own_deltas = deltas[level][image, 4 * a : 4 * a + 4, y, x]
                row_of_levels.append((box, logits[level][image, a, y, x], own_deltas))
        boxes = Boxes(torch.stack([box for box, _, _ in row_of_levels]))
        matches, labels = rpn.anchor_matcher(pairwise_iou(truth[image].gt_boxes, boxes))
        for (box, logit, delta), match, label in zip(row_of_levels, matches, labels, strict=True):
            if label == -1:
                continue
            cls_loss += F.binary_cross_entropy_with_logits(logit, label.float())
            if label == 1:
                num_foreground += 1
                target = truth[image].gt_boxes[int(match)].tensor
                want = rpn.box2box_transform.get_deltas(box[None], target)
                if loss_type == "smooth_l1":
                    loc_loss += (delta - want[0]).abs().sum()
                else:
                    moved = rpn.box2box_transform.apply_deltas(delta[None], box[None])
                    loc_loss += generalized_box_iou_loss(moved, target).sum()
    assert num_foreground >= 6
    torch.testing.assert_close(losses["loss_rpn_cls"], cls_loss / 2000)
    torch.testing.assert_close(losses["loss_rpn_loc"], 3 * loc_loss / 2000)
    assert storage.latest()["rpn/num_pos_anchors"][0] == num_foreground / 2


def test_targets_are_sampled_and_may_leave_out_anchors_beyond_the_border():
    torch.manual_seed(0)
    images, features, truth = small_inputs()
    rpn = small_rpn(batch_size_per_image=16, positive_fraction=0.25, anchor_boundary_thresh=0)
    anchors = rpn.anchor_generator(list(features.values()))
    labels, boxes = rpn.label_and_sample_anchors(anchors, truth)
    inside = Boxes.cat(anchors).inside_box((32, 40))
    for own_labels, own_boxes in zip(labels, boxes, strict=True):
        assert (own_labels >= 0).sum() == 16 and 0 < (own_labels == 1).sum() <= 4
        assert (own_labels[~inside] == -1).all() and own_boxes.shape == (len(inside), 4)


def test_an_image_without_ground_truth_is_background():
    images, features, truth = small_inputs()
    truth = [x[:0] for x in truth]
    with EventStorage():
        _, losses = small_rpn()(images, features, truth)
    assert losses["loss_rpn_loc"] == 0 and losses["loss_rpn_cls"] > 0
    sum(losses.values()).backward()
    with pytest.raises(ValueError, match="needs 'instances'"):
        small_rpn()(images, features)


def slow_nms(boxes, scores, levels, threshold):
    kept = []
    for i in scores.argsort(descending=True).tolist():
        same = [k for k in kept if levels[k] == levels[i]]
        if not same or pairwise_iou(Boxes(boxes[i][None]), Boxes(boxes[same])).max() <= threshold:
            kept.append(i)
    return kept


def test_proposals_equal_a_slow_choice_per_level():
    torch.manual_seed(0)
    boxes = [torch.stack([random_boxes(n, 80) - 10 for _ in range(2)]) for n in (40, 25)]
    logits = [torch.randn(2, 40), torch.randn(2, 25)]
    sizes = [(50, 60), (70, 40)]
    got = find_top_rpn_proposals(boxes, logits, sizes, 0.4, 30, 25, 3.0, training=True)
    for image, (height, width) in enumerate(sizes):
        own_boxes, own_scores, own_levels = [], [], []
        for level in range(2):
            order = logits[level][image].argsort(descending=True)[:30]
            for i in order.tolist():
                limit = torch.tensor([width, height, width, height])
                box = boxes[level][image, i].clamp(min=0).minimum(limit)
                if (box[2:] - box[:2] > 3.0).all():
                    own_boxes.append(box)
                    own_scores.append(logits[level][image, i])
                    own_levels.append(level)
        own_boxes, own_scores = torch.stack(own_boxes), torch.stack(own_scores)
        kept = slow_nms(own_boxes, own_scores, own_levels, 0.4)[:25]
        assert torch.equal(got[image].proposal_boxes.tensor, own_boxes[kept])
        assert torch.equal(got[image].objectness_logits, own_scores[kept])
        assert got[image].image_size == (height, width)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_infinite_predictions_stop_training_and_are_dropped_in_testing(bad):
    boxes, logits = [random_boxes(10)[None]], [torch.randn(1, 10)]
    boxes[0][0, 3, 1] = bad
    arguments = (boxes, logits, [(99, 99)], 1.0, 10, 10, 0.0)
    with pytest.raises(FloatingPointError, match="diverged"):
        find_top_rpn_proposals(*arguments, training=True)
    (found,) = find_top_rpn_proposals(*arguments, training=False)
    assert len(found) == 9 and torch.isfinite(found.proposal_boxes.tensor).all()


def test_proposals_carry_no_gradient():
    images, features, truth = small_inputs()
    with EventStorage():
        proposals, _ = small_rpn()(images, features, truth)
    assert not any(p.proposal_boxes.tensor.requires_grad for p in proposals)
    assert small_rpn().eval()(images, features)[1] == {}


def test_ground_truth_follows_the_proposals():
    proposals = Instances(
        (9, 9), proposal_boxes=Boxes(random_boxes(2)), objectness_logits=torch.zeros(2)
    )
    truth = Boxes(torch.tensor([[1.0, 2, 3, 4]]))
    for gt in (truth, Instances((8, 8), gt_boxes=truth, gt_classes=torch.tensor([1]))):
        (joined,) = add_ground_truth_to_proposals([gt], [proposals])
        assert joined.image_size == (9, 9) and sorted(joined.get_fields()) == [
            "objectness_logits",
            "proposal_boxes",
        ]
        assert joined.proposal_boxes.tensor[2].tolist() == [1, 2, 3, 4]
        assert joined.objectness_logits[2].sigmoid().item() == pytest.approx(1)
    assert add_ground_truth_to_proposals([], []) == []
    with pytest.raises(ValueError, match="proposals of 1 images, ground truth of 2"):
        add_ground_truth_to_proposals([truth, truth], [proposals])
    proposals.extra = torch.zeros(2)
    with pytest.raises(AssertionError, match=r"\['extra'\]"):
        add_ground_truth_to_proposals([truth], [proposals])


def test_builder_reads_the_config():
    cfg = get_cfg()
    cfg.MODEL.RPN.IN_FEATURES = ["a", "b"]
    shapes = {"a": ShapeSpec(channels=4, stride=8), "b": ShapeSpec(channels=6, stride=16)}
    with pytest.raises(ValueError, match=r"channels \[4, 6\]"):
        build_proposal_generator(cfg, shapes)
    cfg.MODEL.RPN.IN_FEATURES = ["b"]
    cfg.MODEL.RPN.BBOX_REG_LOSS_WEIGHT = 2.0
    cfg.MODEL.RPN.LOSS_WEIGHT = 0.5
    rpn = build_proposal_generator(cfg, shapes)
    assert rpn.loss_weight == {"loss_rpn_cls": 0.5, "loss_rpn_loc": 1.0}
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "PrecomputedProposals"
    assert build_proposal_generator(cfg, shapes) is None
