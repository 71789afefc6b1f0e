"""Results at another image size."""

import pytest
import torch

from detectron2.modeling import detector_postprocess, sem_seg_postprocess
from detectron2.structures import Boxes, Instances, ROIMasks


def test_boxes_are_scaled_clipped_and_dropped_when_empty():
    boxes = torch.tensor([[10.0, 5.0, 30.0, 25.0], [90.0, 10.0, 120.0, 60.0], [100.0, 0, 110, 9]])
    scores = torch.tensor([0.9, 0.8, 0.7])
    results = Instances((50, 100), pred_boxes=Boxes(boxes.clone()), scores=scores)
    out = detector_postprocess(results, 100, 300)
    assert out.image_size == (100, 300)
    torch.testing.assert_close(
        out.pred_boxes.tensor, torch.tensor([[30.0, 10.0, 90.0, 50.0], [270.0, 20.0, 300.0, 100.0]])
    )
    assert out.scores.tolist() == scores[:2].tolist()
    assert torch.equal(results.pred_boxes.tensor, boxes), "the input must stay as it was"


def test_proposals_are_scaled():
    results = Instances((10, 10))
    results.proposal_boxes = Boxes(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    out = detector_postprocess(results, 30, 20)
    assert out.proposal_boxes.tensor.tolist() == [[2.0, 6.0, 6.0, 12.0]]


@pytest.mark.parametrize("masks", [torch.ones(1, 1, 28, 28), ROIMasks(torch.ones(1, 28, 28))])
def test_masks_are_pasted_into_their_boxes(masks):
    results = Instances((10, 20), pred_boxes=Boxes(torch.tensor([[2.0, 1.0, 8.0, 5.0]])))
    results.pred_masks = masks
    out = detector_postprocess(results, 20, 40)
    want = torch.zeros(1, 20, 40, dtype=torch.bool)
    want[:, 2:10, 4:16] = True
    assert torch.equal(out.pred_masks, want)


def test_no_detections():
    results = Instances((10, 20), pred_boxes=Boxes(torch.zeros(0, 4)))
    results.pred_masks = torch.zeros(0, 1, 28, 28)
    out = detector_postprocess(results, 20, 40)
    assert out.pred_masks.shape == (0, 20, 40) and out.pred_masks.dtype == torch.bool


def test_results_without_boxes_are_rejected():
    with pytest.raises(ValueError, match=r"pred_boxes or proposal_boxes.*\['scores'\]"):
        detector_postprocess(Instances((4, 4), scores=torch.ones(1)), 8, 8)


def test_semantic_scores_lose_their_padding():
    scores = torch.rand(3, 8, 12)
    scores[:, 6:] = scores[:, :, 10:] = 100.0
    out = sem_seg_postprocess(scores, (6, 10), 6, 10)
    torch.testing.assert_close(out, scores[:, :6, :10])
    assert sem_seg_postprocess(scores, (6, 10), 12, 30).shape == (3, 12, 30)
    assert sem_seg_postprocess(scores, (6, 10), 12, 30).max() <= 1.0
