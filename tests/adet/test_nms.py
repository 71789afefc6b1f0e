"""Suppression against the reference's figures and plain double loops."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adet.modeling.solov2.nms import mask_iou_matrix, mask_nms, matrix_nms, point_nms


@pytest.fixture(scope="module")
def figures(golden):
    return golden("solov2_misc.npz")


@pytest.fixture(scope="module")
def masks(figures):
    shape = figures["nms/shape"]
    bits = np.unpackbits(figures["nms/masks"])[: shape.prod()].reshape(shape)
    return torch.from_numpy(bits).flatten(1)


@pytest.mark.parametrize("kernel", ["gaussian", "linear"])
def test_matrix_nms_equals_the_reference(figures, masks, kernel):
    labels, scores = (torch.from_numpy(figures[f"nms/{k}"]) for k in ("labels", "scores"))
    got = matrix_nms(masks, labels, scores, kernel=kernel, sigma=2.0)
    np.testing.assert_allclose(got, figures[f"nms/matrix_{kernel}"], atol=1e-6)


@pytest.mark.parametrize("threshold", [0.3, 0.5])
def test_mask_nms_equals_the_reference(figures, masks, threshold):
    labels = torch.from_numpy(figures["nms/labels"])
    got = mask_nms(masks, labels, threshold=threshold)
    np.testing.assert_array_equal(got, figures[f"nms/mask_{threshold}"])


def test_point_nms_equals_the_reference(figures):
    got = point_nms(torch.from_numpy(figures["point_nms/in"]))
    np.testing.assert_array_equal(got, figures["point_nms/out"])


def slow_iou(a, b):
    union = (a | b).sum().item()
    return (a & b).sum().item() / union if union else 0.0


def slow_mask_nms(masks, groups, threshold):
    keep = [True] * len(masks)
    for i in range(len(masks)):
        for j in range(i):
            same = keep[j] and groups[i] == groups[j]
            if same and slow_iou(masks[i], masks[j]) > threshold:
                keep[i] = False
    return keep


def slow_matrix_nms(masks, groups, scores, kernel, sigma):
    n = len(masks)
    iou = [[slow_iou(a, b) if g == h else 0.0 for b, h in zip(masks, groups, strict=True)]
           for a, g in zip(masks, groups, strict=True)]  # fmt: skip
    worst = [max([iou[k][i] for k in range(i)], default=0.0) for i in range(n)]
    output = []
    for j in range(n):
        factors = [1.0]
        for i in range(j):
            if kernel == "gaussian":
                factors.append(np.exp(-sigma * iou[i][j] ** 2) / np.exp(-sigma * worst[i] ** 2))
            elif worst[i] < 1:
                factors.append((1 - iou[i][j]) / (1 - worst[i]))
            elif iou[i][j] == 1:  # i and j are both copies of an earlier mask
                factors.append(0.0)
        output.append(scores[j] * min(factors))
    return output


mask_sets = st.integers(0, 2**31).flatmap(
    lambda seed: st.tuples(st.just(seed), st.integers(1, 9), st.integers(1, 3))
)


def random_masks(seed, count):
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(count, 12, 12, dtype=torch.bool)
    for mask in masks:
        y, x, h, w = torch.randint(0, 8, (4,), generator=generator).tolist()
        mask[y : y + h + 1, x : x + w + 1] = True
    masks[count // 2] = masks[0]  # exact copies happen: several points in one cell
    return masks.flatten(1), generator


@settings(max_examples=60, deadline=None)
@given(mask_sets)
def test_nms_equals_plain_loops(case):
    seed, count, num_groups = case
    masks, generator = random_masks(seed, count)
    groups = torch.randint(0, num_groups, (count,), generator=generator)
    scores = torch.rand(count, generator=generator).sort(descending=True).values
    for threshold in (0.3, 0.5):
        got = mask_nms(masks, groups, threshold=threshold)
        assert got.tolist() == slow_mask_nms(masks, groups, threshold)
    for kernel in ("gaussian", "linear"):
        got = matrix_nms(masks, groups, scores, kernel=kernel, sigma=2.0)
        want = slow_matrix_nms(masks, groups, scores.tolist(), kernel, 2.0)
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_many_masks_of_a_class_overlap_as_few_do():
    generator = torch.Generator().manual_seed(0)
    masks = torch.zeros(140, 50, 45)
    for mask in masks:
        y, x = torch.randint(0, 40, (2,), generator=generator).tolist()
        mask[y : y + 9, x : x + 7] = 1
    masks[5] = 0
    masks = masks.flatten(1)
    groups = (torch.arange(140) % 7 == 0).long()  # one group on either side of LARGE_GROUP
    shared = masks @ masks.T
    unions = masks.sum(dim=1)[:, None] + masks.sum(dim=1) - shared
    want = shared / unions.clamp(min=1) * (groups[:, None] == groups)
    assert torch.equal(mask_iou_matrix(masks, groups), want)


def test_empty_masks_and_other_groups_overlap_nothing():
    masks = torch.zeros(4, 9)
    masks[2:] = 1
    ious = mask_iou_matrix(masks, torch.tensor([0, 0, 0, 1]))
    assert torch.equal(ious, torch.diag(torch.tensor([0.0, 0, 1, 1])))


def test_no_masks():
    none = torch.zeros(0, 9)
    groups = torch.zeros(0, dtype=torch.int64)
    assert matrix_nms(none, groups, torch.zeros(0)).shape == (0,)
    assert mask_nms(none, groups, threshold=0.5).shape == (0,)


def test_unknown_kernels_are_refused():
    with pytest.raises(ValueError, match="kernel 'cubic'; expected"):
        matrix_nms(torch.ones(1, 4), torch.zeros(1), torch.ones(1), kernel="cubic")
