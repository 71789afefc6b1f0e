"""Boxes of masks and score-free suppression."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weaksam.proposals.boxes import mask_boxes, ordered_nms


def by_pairs(boxes: np.ndarray, threshold: float) -> list[int]:
    """The definition, on boxes that end at the last pixel's index, whose sides count one more."""
    kept: list[int] = []
    for i, (a0, b0, a1, b1) in enumerate(boxes):
        for j in kept:
            c0, d0, c1, d1 = boxes[j]
            both = max(0, min(a1, c1) - max(a0, c0) + 1) * max(0, min(b1, d1) - max(b0, d0) + 1)
            area = (a1 - a0 + 1) * (b1 - b0 + 1) + (c1 - c0 + 1) * (d1 - d0 + 1)
            if both / (area - both) > threshold:
                break
        else:
            kept.append(i)
    return kept


def test_worked_example():
    """IoUs with the first box: 1, .9801, .5, .95, .90 (which stays), 1."""
    last_pixels = np.array(
        [
            [0, 0, 99, 99],
            [1, 1, 99, 99],
            [0, 0, 49, 99],
            [0, 0, 94, 99],
            [0, 0, 89, 99],
            [0, 0, 99, 99],
        ]
    )
    assert ordered_nms(last_pixels + [0, 0, 1, 1], 0.9).tolist() == [0, 2, 4]


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.85, 0.9])
def test_random_boxes_against_pairs(threshold):
    rng = np.random.default_rng(1)
    low = rng.integers(0, 12, (300, 2))
    boxes = np.concatenate([low, low + rng.integers(0, 10, (300, 2))], axis=1)
    got = ordered_nms(boxes + [0, 0, 1, 1], threshold).tolist()
    assert got == by_pairs(boxes, threshold)
    assert 10 < len(got) < 300


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 6)] * 4), max_size=25), st.sampled_from([0.2, 0.5, 0.9]))
def test_suppression_is_idempotent_and_keeps_order(corners, threshold):
    boxes = np.array([(x, y, x + w + 1, y + h + 1) for x, y, w, h in corners], float).reshape(-1, 4)
    kept = ordered_nms(boxes, threshold)
    assert (np.diff(kept) > 0).all()
    assert len(ordered_nms(boxes[kept], threshold)) == len(kept)
    assert len(boxes) == 0 or kept[0] == 0


def test_boxes_are_half_open_and_zero_for_empty_masks():
    masks = torch.zeros(2, 3, 7, 9, dtype=torch.bool)
    masks[0, 0, 2, 3:6] = True
    masks[0, 2] = True
    masks[1, 1, 6, 8] = masks[1, 1, 0, 0] = True
    want = [[[3, 2, 6, 3], [0] * 4, [0, 0, 9, 7]], [[0] * 4, [0, 0, 9, 7], [0] * 4]]
    assert mask_boxes(masks).tolist() == want
