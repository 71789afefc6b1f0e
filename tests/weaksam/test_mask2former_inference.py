"""Instances that Mask2Former finds, against loops over queries and classes."""

import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("transformers", reason="needs the extra [sam]")

from detectron2.structures import BitMasks
from tests.weaksam.small_mask2former import CLASSES, build, make_input
from weaksam.mask2former.inference import find_instances

pytestmark = pytest.mark.usefixtures("one_thread")


def instances_by_loops(class_logits, mask_logits, frame, image, output, count):
    probabilities = class_logits.softmax(-1)
    found = []
    for q in range(len(class_logits)):
        large = F.interpolate(mask_logits[None, q : q + 1], size=frame, mode="bilinear")
        large = large[..., : image[0], : image[1]]
        large = F.interpolate(large, size=output, mode="bilinear")[0, 0]
        for k in range(class_logits.shape[1] - 1):
            found.append((float(probabilities[q, k]), k, large))
    found = sorted(found, key=lambda row: -row[0])[:count]
    results = []
    for probability, k, large in found:
        if (large > 0).any():
            certainty = float(large[large > 0].sigmoid().mean())
            results.append((probability * certainty, k, large > 0))
    return sorted(results, key=lambda row: -row[0])


@pytest.mark.parametrize("count", [7, 40])
def test_results_are_the_best_pairs_of_query_and_class(count):
    generator = torch.Generator().manual_seed(0)
    class_logits = torch.randn(18, CLASSES + 1, generator=generator)
    coarse = torch.randn(1, 18, 4, 5, generator=generator) * 3
    mask_logits = F.interpolate(coarse, size=(16, 20), mode="bilinear")[0]
    best = class_logits.softmax(-1)[:, :-1].amax(dim=1).argmax()
    mask_logits[best] = -5.0  # the best class has no pixel
    sizes = {"frame_hw": (64, 80), "image_hw": (50, 71), "output_hw": (33, 90)}
    got = find_instances(class_logits, mask_logits, max_instances=count, **sizes)
    want = instances_by_loops(class_logits, mask_logits, *sizes.values(), count)
    assert len(got) == len(want) < count
    torch.testing.assert_close(got.scores, torch.tensor([score for score, _, _ in want]))
    assert got.pred_classes.tolist() == [k for _, k, _ in want]
    assert torch.equal(got.pred_masks, torch.stack([mask for _, _, mask in want]))
    tight = BitMasks(got.pred_masks).get_bounding_boxes().tensor
    assert torch.equal(got.pred_boxes.tensor, tight)


def test_there_may_be_no_result():
    sizes = {"frame_hw": (32, 32), "image_hw": (30, 30), "output_hw": (20, 20)}
    got = find_instances(torch.zeros(4, 3), torch.full((4, 8, 8), -1.0), max_instances=9, **sizes)
    assert len(got) == 0 and got.pred_masks.shape == (0, 20, 20)
    assert got.pred_boxes.tensor.shape == (0, 4)


def test_an_image_is_found_alone_as_in_a_batch():
    model = build().eval()
    inputs = [make_input(0) | {"height": 90, "width": 70}, make_input(1, 2)]
    with torch.no_grad():
        together = model(inputs)
        for x, other in zip(inputs, together, strict=True):
            alone, other = model([x])[0]["instances"], other["instances"]
            assert other.image_size == (x["height"], x["width"])
            torch.testing.assert_close(alone.scores, other.scores)
            assert (alone.pred_masks != other.pred_masks).float().mean() < 1e-3
