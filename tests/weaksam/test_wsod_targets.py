"""Seeds and targets of proposals: the specification's example, slow loops, and order."""

import itertools

import pytest
import torch
from torchvision.ops import box_iou

from detectron2.modeling.box_regression import Box2BoxTransform
from weaksam.wsod.targets import SeedRule, assign_proposals, find_seeds

# SPEC_WEAKSAM A5, its inclusive corners as half-open ones.
BOXES = torch.tensor(
    [
        *([0, 0, 49, 49], [5, 5, 49, 49], [60, 60, 99, 99], [60, 60, 95, 95], [0, 60, 30, 99]),
        *([0, 0, 99, 99], [10, 10, 20, 20], [62, 0, 99, 30], [50, 0, 99, 40], [30, 30, 70, 70]),
    ],
    dtype=torch.float32,
) + torch.tensor([0, 0, 1, 1])
SCORES = torch.tensor(
    [
        *([0.50, 0.2, 0.2], [0.40, 0.2, 0.2], [0.30, 0.10, 0.3], [0.2, 0.30, 0.1]),
        *([0.1, 0.2, 0.2], [0.05, 0.25, 0.3], [0.1, 0.2, 0.1], [0.05, 0.05, 0.4]),
        *([0.02, 0.08, 0.3], [0.1, 0.1, 0.1]),
    ]
)
TAGS = torch.tensor([0, 1])
BACKGROUND = 3


def mist_loops(boxes, scores, tags, share, nms_iou, fg_iou, min_rois=10):
    """SPEC_WEAKSAM 8.4 as it is written: classes, weights and seed rows."""
    count = len(boxes)
    kept = 1 if count < min_rois else int(share * count)
    overlaps = box_iou(boxes, boxes)
    seeds = []
    for c in tags.tolist():
        order = sorted(range(count), key=lambda r: -scores[r, c].item())[:kept]
        for i, r in enumerate(order):
            if i == 0 or max(overlaps[r, order[j]].item() for j in range(i)) < nms_iou:
                seeds.append((r, c, scores[r, c].item()))
    classes, weights, rows = [], [], []
    for r in range(count):
        values = [overlaps[r, seed].item() for seed, _, _ in seeds]
        row, c, score = seeds[values.index(max(values))]
        classes.append(c if max(values) >= fg_iou else scores.shape[1])
        weights.append(score)
        rows.append(row)
    return classes, weights, rows


def targets_of(rule, boxes=BOXES, scores=SCORES, tags=TAGS):
    seeds = find_seeds(boxes, scores, tags, rule)
    return assign_proposals(boxes, seeds, scores.shape[1], rule)


@pytest.mark.parametrize(
    "rule",
    [SeedRule(share=0.15), SeedRule("top1")],
    ids=["one seed a class by share", "published OICR"],
)
def test_the_example_with_one_seed_a_class(rule):
    targets = targets_of(rule)
    b = BACKGROUND
    assert targets.classes.tolist() == [0, 0, 1, 1, b, b, b, b, b, b]
    want = [0.5, 0.5, 0.3, 0.3, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]
    torch.testing.assert_close(targets.weights, torch.tensor(want))


def test_the_example_with_four_candidates_a_class():
    targets = targets_of(SeedRule(share=0.4))
    b = BACKGROUND
    assert targets.classes.tolist() == [0, 0, 0, 1, b, 1, b, b, b, b]
    want = [0.5, 0.5, 0.3, 0.3, 0.25, 0.25, 0.5, 0.25, 0.25, 0.25]
    torch.testing.assert_close(targets.weights, torch.tensor(want))


def test_the_regression_target_of_the_example():
    targets = targets_of(SeedRule())
    deltas = Box2BoxTransform((10.0, 10.0, 5.0, 5.0)).get_deltas(
        BOXES[1:2], BOXES[targets.seeds[1:2]]
    )
    want = torch.tensor([[-0.556, -0.556, 0.527, 0.527]])
    torch.testing.assert_close(deltas, want, atol=6e-4, rtol=0)


def random_image(seed, count=60, classes=4):
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 2, generator=generator) * 60
    boxes = torch.cat([low, low + 5 + torch.rand(count, 2, generator=generator) * 40], dim=1)
    return boxes, torch.rand(count, classes, generator=generator)


@pytest.mark.parametrize("seed,count", [*itertools.product(range(5), (3, 9, 10, 60))])
def test_mist_targets_equal_the_loops(seed, count):
    boxes, scores = random_image(seed, count)
    tags = torch.tensor([0, 2, 3])
    targets = targets_of(SeedRule(), boxes, scores, tags)
    classes, weights, rows = mist_loops(boxes, scores, tags, 0.15, 0.2, 0.5)
    assert targets.classes.tolist() == classes
    assert targets.seeds.tolist() == rows
    torch.testing.assert_close(targets.weights, torch.tensor(weights))


def test_top_ratio_takes_all_that_are_nearly_the_best_and_thins_over_classes():
    boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 9], [20, 0, 30, 10], [40, 0, 50, 10]])
    scores = torch.tensor([[1.0, 0.0], [0.0, 0.95], [0.95, 0.0], [0.5, 0.9]])
    seeds = find_seeds(boxes.float(), scores, torch.tensor([0, 1]), SeedRule("top_ratio"))
    # Row 1 is the other class's best, but lies on row 0, which scores more.
    assert sorted(zip(seeds.rows.tolist(), seeds.classes.tolist(), strict=True)) == [
        *((0, 0), (2, 0), (3, 1))
    ]


def test_top1_gives_a_proposal_to_one_class():
    boxes, _ = random_image(0, 4)
    scores = torch.tensor([[0.9, 0.9], [0.1, 0.2], [0.1, 0.3], [0.1, 0.1]])
    seeds = find_seeds(boxes, scores, torch.tensor([0, 1]), SeedRule("top1"))
    assert seeds.rows.tolist() == [0, 2] and seeds.classes.tolist() == [0, 1]


@pytest.mark.parametrize("name", ["top_share", "top_ratio", "top1"])
def test_targets_do_not_depend_on_the_order_of_proposals(name):
    boxes, scores = random_image(7)
    tags = torch.tensor([1, 2])
    order = torch.randperm(len(boxes), generator=torch.Generator().manual_seed(1))
    plain = targets_of(SeedRule(name), boxes, scores, tags)
    moved = targets_of(SeedRule(name), boxes[order], scores[order], tags)
    assert plain.classes[order].tolist() == moved.classes.tolist()
    assert plain.seeds[order].tolist() == order[moved.seeds].tolist()
    torch.testing.assert_close(plain.weights[order], moved.weights)


@pytest.mark.parametrize("count,tags", [(5, []), (0, [0])])
def test_without_tags_or_proposals_nothing_counts(count, tags):
    boxes, scores = random_image(0, count)
    targets = targets_of(SeedRule(), boxes, scores, torch.tensor(tags, dtype=torch.int64))
    assert (targets.weights == 0).all() and (targets.classes == scores.shape[1]).all()


def test_unknown_rules_and_senseless_numbers_are_refused():
    with pytest.raises(ValueError, match="top_share"):
        SeedRule("best")
    with pytest.raises(ValueError, match="share=0"):
        SeedRule(share=0)
