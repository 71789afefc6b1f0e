"""The box predictor: losses, results, and what a subclass may change."""

import pytest
import torch
from torch.nn import functional as F

from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.modeling.roi_heads.fast_rcnn import (
    fast_rcnn_inference,
    fast_rcnn_inference_single_image,
)
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.utils.events import EventStorage
from detectron2.utils.testing import random_boxes

TRANSFORM = Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0))


def make_predictor(num_classes=3, cls=FastRCNNOutputLayers, channels=4, **kwargs):
    shape = ShapeSpec(channels=channels)
    return cls(shape, box2box_transform=TRANSFORM, num_classes=num_classes, **kwargs)


def make_proposals(classes_by_image):
    proposals = []
    for classes in classes_by_image:
        count = len(classes)
        proposals.append(
            Instances(
                (100, 100),
                proposal_boxes=Boxes(random_boxes(count)),
                gt_boxes=Boxes(random_boxes(count)),
                gt_classes=torch.tensor(classes, dtype=torch.int64),
            )
        )
    return proposals


def test_losses_are_those_of_detectron2():
    """Computed with Detectron2: seed 132, 8 features, 5 classes, two regions in one image."""
    torch.manual_seed(132)
    predictor = make_predictor(num_classes=5, channels=8)
    predictions = predictor(torch.rand(2, 8))
    regions = {1: ((0.8, 1.1, 3.2, 2.8), (1, 1, 3, 3)), 2: ((2.3, 2.5, 7, 8), (2, 2, 6, 6))}
    sources, targets = torch.tensor(list(regions.values())).unbind(dim=1)
    image = Instances((10, 10), proposal_boxes=Boxes(sources), gt_boxes=Boxes(targets))
    image.gt_classes = torch.tensor(list(regions))
    with EventStorage():
        losses = predictor.losses(predictions, [image])
    want = {"loss_cls": 1.7951188087, "loss_box_reg": 4.0357131958}
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("agnostic", [False, True])
def test_losses_equal_a_loop_over_regions(agnostic):
    torch.manual_seed(0)
    predictor = make_predictor(
        cls_agnostic_bbox_reg=agnostic, loss_weight={"loss_box_reg": 2.0}, smooth_l1_beta=0.5
    )
    proposals = make_proposals([[0, 3, 2], [3, 1]])
    scores = torch.randn(5, 4)
    deltas = torch.randn(5, 4 if agnostic else 12)
    with EventStorage() as storage:
        losses = predictor.losses((scores, deltas), proposals)
    cls_loss, box_loss, row = 0.0, 0.0, 0
    for own in proposals:
        for i, label in enumerate(own.gt_classes.tolist()):
            cls_loss -= scores[row].log_softmax(dim=0)[label]
            if label < 3:
                pred = deltas[row] if agnostic else deltas[row, 4 * label : 4 * label + 4]
                want = TRANSFORM.get_deltas(own.proposal_boxes[i].tensor, own.gt_boxes[i].tensor)[0]
                box_loss += F.smooth_l1_loss(pred, want, beta=0.5, reduction="sum")
            row += 1
    torch.testing.assert_close(losses["loss_cls"], cls_loss / 5)
    torch.testing.assert_close(losses["loss_box_reg"], 2 * box_loss / 5)
    right = (scores.argmax(dim=1) == torch.tensor([0, 3, 2, 3, 1])).float()
    assert storage.latest()["fast_rcnn/cls_accuracy"][0] == pytest.approx(right.mean().item())
    assert storage.latest()["fast_rcnn/fg_cls_accuracy"][0] == pytest.approx(
        right[[0, 2, 4]].mean().item()
    )


def test_no_image_and_no_region_give_losses_with_a_gradient():
    predictor = make_predictor()
    logits, deltas = torch.randn(0, 4, requires_grad=True), torch.randn(0, 12, requires_grad=True)
    for proposals in ([], make_proposals([[], []])):
        losses = predictor.losses((logits, deltas), proposals)
        assert losses["loss_cls"] == 0 and losses["loss_box_reg"] == 0
        sum(losses.values()).backward()
    assert logits.grad is not None and deltas.grad is not None
    assert predictor.inference((logits, deltas), []) == ([], [])
    assert predictor.predict_boxes_for_gt_classes((logits, deltas), []) == []
    (found, _), regions = predictor.inference((logits, deltas), make_proposals([[], []]))
    assert len(found) == 0 and found.pred_classes.dtype == torch.int64 and len(regions) == 2


class DropsUncertain(FastRCNNOutputLayers):
    """As a later loss does: no class loss where the prediction is unsure."""

    def losses_per_roi(self, predictions, proposals):
        losses = super().losses_per_roi(predictions, proposals)
        sure = predictions[0].softmax(dim=1).amax(dim=1) > 0.6
        return losses | {"loss_cls": losses["loss_cls"] * sure}


def test_a_subclass_can_drop_regions_by_their_scores():
    torch.manual_seed(0)
    predictor = make_predictor(cls=DropsUncertain)
    proposals = make_proposals([[0, 1, 3]])
    scores = torch.tensor([[5.0, 0, 0, 0], [0, 0, 0, 0], [0, 4.0, 0, 0]])
    predictions = (scores, torch.zeros(3, 12))
    with EventStorage():
        got = predictor.losses(predictions, proposals)
        plain = make_predictor().losses(predictions, proposals)
    each = F.cross_entropy(scores, torch.tensor([0, 1, 3]), reduction="none")
    torch.testing.assert_close(got["loss_cls"], (each[0] + each[2]) / 3)
    assert torch.equal(got["loss_box_reg"], plain["loss_box_reg"])


def slow_detections(boxes, scores, shape, score_thresh, nms_thresh, topk):
    """All (score, class, region, box) by the rules, one at a time."""
    height, width = shape
    limit = torch.tensor([width, height, width, height])
    kept = []
    candidates = sorted(
        (-scores[r, k].item(), k, r)
        for r in range(len(scores))
        for k in range(scores.shape[1] - 1)
        if scores[r, k] > score_thresh
    )
    for score, k, region in candidates:
        columns = slice(4 * k, 4 * k + 4) if boxes.shape[1] > 4 else slice(0, 4)
        box = boxes[region, columns].clamp(min=0).minimum(limit)
        same = [other for other in kept if other[1] == k]
        overlaps = [pairwise_iou(Boxes(box[None]), Boxes(o[3][None])).item() for o in same]
        if not any(overlap > nms_thresh for overlap in overlaps):
            kept.append((-score, k, region, box))
    return kept[:topk] if topk >= 0 else kept


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("topk", [5, -1])
def test_detections_equal_a_slow_loop(agnostic, topk):
    torch.manual_seed(3)
    boxes = torch.cat([random_boxes(30, 60) for _ in range(1 if agnostic else 3)], dim=1) - 5
    scores = torch.randn(30, 4).mul(2).softmax(dim=1)
    arguments = (boxes, scores, (40, 50), 0.2, 0.3, topk)
    got, regions = fast_rcnn_inference_single_image(*arguments)
    want = slow_detections(*arguments)
    assert got.image_size == (40, 50) and len(got) == len(want) > 4
    assert got.pred_classes.tolist() == [k for _, k, _, _ in want]
    assert regions.tolist() == [region for _, _, region, _ in want]
    assert got.scores.tolist() == pytest.approx([score for score, *_ in want])
    torch.testing.assert_close(got.pred_boxes.tensor, torch.stack([box for *_, box in want]))


def test_infinite_predictions_are_left_out_and_regions_stay_right():
    boxes = torch.tensor([[float("inf"), 0, 1, 1], [0, 0, 5, 5], [1, 1, 9, 9]])
    scores = torch.tensor([[0.9, 0.1], [float("nan"), 0.1], [0.8, 0.2]])
    (found,), (regions,) = fast_rcnn_inference([boxes], [scores], [(10, 10)], 0.05, 0.5, 100)
    assert regions.tolist() == [2] and found.scores.tolist() == pytest.approx([0.8])


def test_predicted_boxes_and_probabilities_are_split_by_image():
    torch.manual_seed(0)
    predictor = make_predictor()
    proposals = make_proposals([[0, 3], [2]])
    scores, deltas = torch.randn(3, 4), torch.randn(3, 12)
    boxes = predictor.predict_boxes((scores, deltas), proposals)
    assert [tuple(b.shape) for b in boxes] == [(2, 12), (1, 12)]
    probabilities = predictor.predict_probs((scores, deltas), proposals)
    torch.testing.assert_close(torch.cat(probabilities), scores.softmax(dim=1))
    first, second = predictor.predict_boxes_for_gt_classes((scores, deltas), proposals)
    assert torch.equal(first[0], boxes[0][0, :4])
    assert torch.equal(first[1], boxes[0][1, 8:])  # background: of any class
    assert torch.equal(second[0], boxes[1][0, 8:])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method,columns", [("predict_boxes", 12), ("predict_probs", 4)])
def test_a_trace_holds_for_other_numbers_of_proposals(method, columns):
    predictor = make_predictor()

    def predict(values, boxes):
        proposals = Instances((10, 10), proposal_boxes=Boxes(boxes))
        return getattr(predictor, method)((values, values), [proposals])

    traced = torch.jit.trace(predict, (torch.randn(10, columns), torch.rand(10, 4)))
    for count in (10, 5, 20):
        values, boxes = torch.randn(count, columns), random_boxes(count)
        torch.testing.assert_close(traced(values, boxes), predict(values, boxes))


def test_arguments_are_checked():
    assert make_predictor().cls_score.in_features == 4
    predictor = FastRCNNOutputLayers(6, box2box_transform=TRANSFORM, num_classes=2)
    assert predictor(torch.zeros(3, 6, 1, 1))[0].shape == (3, 3)
    with pytest.raises(ValueError, match="'l2'"):
        make_predictor(box_reg_loss_type="l2")
