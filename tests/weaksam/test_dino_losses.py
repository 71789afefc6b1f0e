"""Matching, losses, drop and denoising of DINO, against the library on the same tensors."""

import math

import pytest
import torch

from tests.weaksam.dino_samples import random_targets
from weaksam.dino.denoising import Denoising, DenoisingSettings
from weaksam.dino.losses import LossSettings, dropped_matches, layer_losses, mean_count
from weaksam.dino.matching import MatchCosts, Matches, Targets, match

pytest.importorskip("transformers")  # the extra [sam]

LAYERS, BATCH, QUERIES, CLASSES = 3, 3, 12, 4
COUNTS = (4, 0, 6)


def predictions(seed: int = 0):
    torch.manual_seed(seed)
    logits = torch.randn(LAYERS, BATCH, QUERIES, CLASSES)
    boxes = 0.05 + 0.4 * torch.rand(LAYERS, BATCH, QUERIES, 4)
    return logits.requires_grad_(), boxes.requires_grad_()


def library_targets(targets):
    return [{"class_labels": own.classes, "boxes": own.boxes} for own in targets]


def library_matcher():
    from transformers.loss.loss_deformable_detr import DeformableDetrHungarianMatcher

    return DeformableDetrHungarianMatcher(class_cost=2.0, bbox_cost=5.0, giou_cost=2.0)


@pytest.mark.parametrize("seed", range(5))
def test_matches_are_the_library_s(seed: int):
    logits, boxes = predictions(seed)
    targets = random_targets(seed, COUNTS, CLASSES)
    got = match(logits, boxes, targets, MatchCosts())
    for layer in range(LAYERS):
        want = library_matcher()(
            {"logits": logits[layer], "pred_boxes": boxes[layer]}, library_targets(targets)
        )
        rows = [(i, *pair) for i, (q, t) in enumerate(want) for pair in zip(q, t, strict=True)]
        mine = zip(got.image[layer], got.query[layer], got.label[layer], strict=True)
        assert sorted(tuple(map(int, r)) for r in mine) == sorted(tuple(map(int, r)) for r in rows)


@pytest.mark.parametrize("seed", range(5))
def test_losses_are_the_library_s(seed: int):
    from transformers.loss.loss_deformable_detr import DeformableDetrImageLoss

    logits, boxes = predictions(seed)
    targets = random_targets(seed, COUNTS, CLASSES)
    matches = match(logits, boxes, targets, MatchCosts())
    got = layer_losses(logits, boxes, targets, matches, sum(COUNTS), LossSettings())
    library = DeformableDetrImageLoss(library_matcher(), CLASSES, 0.25, ["labels", "boxes"])
    for layer in range(LAYERS):
        want = library(
            {"logits": logits[layer], "pred_boxes": boxes[layer]}, library_targets(targets)
        )
        torch.testing.assert_close(got.classes[layer], want["loss_ce"])
        torch.testing.assert_close(got.l1[layer], 5 * want["loss_bbox"])
        torch.testing.assert_close(got.giou[layer], 2 * want["loss_giou"])
    named = got.named("_aux", slice(-1))
    assert named["loss_bbox_aux"] == got.l1[0] + got.l1[1]
    assert not got.dropped.any()


def test_more_labels_than_queries_and_none():
    logits, boxes = predictions()
    many = random_targets(1, (QUERIES + 3, 0, 1), CLASSES)
    matches = match(logits, boxes, many, MatchCosts())
    assert matches.query.shape == (LAYERS, QUERIES + 1)
    none = random_targets(1, (0, 0, 0), CLASSES)
    matches = match(logits, boxes, none, MatchCosts())
    count = mean_count(0, logits.device)
    losses = layer_losses(logits, boxes, none, matches, count, LossSettings())
    assert (losses.classes > 0).all() and not losses.l1.any() and not losses.giou.any()
    sum(losses.named("", slice(None)).values()).backward()
    assert torch.isfinite(logits.grad).all() and not boxes.grad.any()


def test_boxes_without_area_are_matched_last():
    logits, boxes = torch.zeros(1, 1, 2, 1), torch.zeros(1, 1, 2, 4)
    boxes[0, 0, 1] = torch.tensor([0.9, 0.9, 0.1, 0.1])
    targets = [Targets(torch.zeros(1, dtype=torch.int64), torch.zeros(1, 4))]
    assert match(logits, boxes, targets, MatchCosts()).query.tolist() == [[1]]


def test_drop_takes_the_floor_of_the_share_with_the_largest_losses():
    losses = torch.tensor([[5.0, 1, 6, 0.2, 4, 3, 2, 7, 0, 8], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]])
    assert dropped_matches(losses, 0.1).nonzero().tolist() == [[0, 9], [1, 9]]
    assert dropped_matches(losses, 0.35).sum(dim=1).tolist() == [3, 3]
    assert dropped_matches(losses, 0.35)[0].nonzero().flatten().tolist() == [2, 7, 9]
    assert not dropped_matches(losses[:, :9], 0.1).any()  # fewer than 1 / 0.1
    assert dropped_matches(torch.rand(1, 100), 0.29).sum() == 29
    assert not dropped_matches(losses, 0.0).any()
    assert not dropped_matches(torch.zeros(2, 0), 0.5).any()


def focal(logit: float, is_class: bool) -> float:
    p = 1 / (1 + math.exp(-logit))
    return 0.25 * (1 - p) ** 2 * -math.log(p) if is_class else 0.75 * p**2 * -math.log(1 - p)


def test_what_is_dropped_adds_nothing_and_divides_as_before():
    logits, boxes = predictions(3)
    targets = random_targets(3, COUNTS, CLASSES)
    matches = match(logits, boxes, targets, MatchCosts())
    quantile, count = 0.3, sum(COUNTS)
    full = layer_losses(logits, boxes, targets, matches, count, LossSettings())
    got = layer_losses(logits, boxes, targets, matches, count, LossSettings(), quantile)
    for layer in range(LAYERS):
        terms = []
        for i, q, t in zip(*(x[layer] for x in vars(matches).values()), strict=True):
            wanted = targets[i].classes[t]
            row = logits[layer, i, q].tolist()
            cls = sum(focal(v, c == wanted) for c, v in enumerate(row))
            l1 = (boxes[layer, i, q] - targets[i].boxes[t]).abs().sum().item()
            terms.append((cls, l1))
        worst = sorted(terms, reverse=True)[: int(quantile * count)]
        assert got.dropped[layer].sum() == len(worst) == 3
        lost_cls, lost_l1 = (sum(values) for values in zip(*worst, strict=True))
        assert got.classes[layer].item() == pytest.approx(
            full.classes[layer].item() - lost_cls / count, rel=1e-4
        )
        assert got.l1[layer].item() == pytest.approx(
            full.l1[layer].item() - 5 * lost_l1 / count, rel=1e-4
        )
        assert got.giou[layer] < full.giou[layer]
    sum(got.named("", slice(None)).values()).backward()
    layer, m = got.dropped.nonzero()[0].tolist()
    place = (layer, matches.image[layer, m], matches.query[layer, m])
    assert not logits.grad[place].any() and not boxes.grad[place].any()


def test_all_dropped_is_zero_with_finite_gradients():
    logits, boxes = predictions()
    logits = logits[:, :1, :4].detach().requires_grad_()
    boxes = boxes[:, :1, :4].detach().requires_grad_()
    targets = random_targets(0, (4,), CLASSES)
    matches = match(logits, boxes, targets, MatchCosts())
    got = layer_losses(logits, boxes, targets, matches, 4, LossSettings(), 1.0)
    total = sum(got.named("", slice(None)).values())
    assert total == 0
    total.backward()
    assert torch.isfinite(logits.grad).all() and not boxes.grad.any()


def test_a_dropped_loss_may_be_infinite():
    logits, boxes = predictions()
    with torch.no_grad():
        logits[:, 0, 0] = torch.inf
    targets = random_targets(0, COUNTS, CLASSES)
    matches = Matches(*(torch.zeros(1, 1, dtype=torch.int64) for _ in range(3)))
    got = layer_losses(logits, boxes, targets, matches, 1, LossSettings(), 1.0)
    assert torch.isfinite(got.classes).all()


def noisy_queries(counts=COUNTS, seed: int = 0, **changes):
    torch.manual_seed(seed)
    settings = DenoisingSettings(**({"queries": 20} | changes))
    denoising = Denoising(CLASSES, 8, settings)
    targets = random_targets(seed, counts, CLASSES)
    return denoising, targets, denoising(targets, num_matching=QUERIES)


def test_denoising_queries_belong_to_labels():
    denoising, targets, got = noisy_queries(label_noise=0.0)
    groups, width = 20 // 6, 2 * 6  # positive and negative for the most labels of an image
    assert len(got) == groups * width and got.content.shape == (BATCH, 36, 8)
    assert got.matches.query.shape == (1, groups * sum(COUNTS))
    triples = zip(*(x[0].tolist() for x in vars(got.matches).values()), strict=True)
    for i, q, t in triples:
        own = targets[i]
        assert q % width == t  # positives come first in a group, in the order of the labels
        torch.testing.assert_close(
            got.content[i, q], denoising.label_embedding.weight[own.classes[t]]
        )
        positive, negative = got.boxes[i, q], got.boxes[i, q + 6]
        shift = corner_shift(positive, own.boxes[t])
        assert (shift <= 0.5 + 1e-4).all()
        assert (corner_shift(negative, own.boxes[t]) >= 0.5 - 1e-4).any()


def corner_shift(box, label):
    """Of each corner's coordinates, in sides of the label."""
    corners = torch.cat([box[:2] - box[2:] / 2, box[:2] + box[2:] / 2])
    wanted = torch.cat([label[:2] - label[2:] / 2, label[:2] + label[2:] / 2])
    return (corners - wanted).abs() / label[2:].repeat(2)


def test_classes_are_changed_in_half_of_the_share():
    denoising, targets, got = noisy_queries((6,), label_noise=1.0, queries=900)
    table = denoising.label_embedding.weight
    wanted = table[targets[0].classes].repeat(len(got) // 6, 1)
    changed = (got.content[0] != wanted).any(dim=1).float().mean()
    # Half are drawn anew; one in CLASSES of them keeps its class.
    assert changed == pytest.approx(0.5 * (1 - 1 / CLASSES), abs=0.03)


def test_groups_are_hidden_from_each_other_and_from_matching_queries():
    _, _, got = noisy_queries()
    hidden = got.is_hidden
    assert hidden.shape == (36 + QUERIES, 36 + QUERIES)
    for row in range(36 + QUERIES):
        for column in range(36 + QUERIES):
            to_noisy = column < 36
            same_group = row < 36 and to_noisy and row // 12 == column // 12
            assert hidden[row, column] == (to_noisy and not same_group)


@pytest.mark.parametrize("counts, queries", [((0, 0), 20), ((2, 1), 0)])
def test_without_labels_or_denoising_there_are_no_queries(counts, queries):
    denoising, _, got = noisy_queries(counts, queries=queries)
    assert len(got) == 0 and got.is_hidden.shape == (QUERIES, QUERIES)
    assert got.matches.query.shape == (1, 0) and not got.is_hidden.any()
    got.content.sum().backward()
    assert not denoising.label_embedding.weight.grad.any()
