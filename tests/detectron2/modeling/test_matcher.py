"""Matching against a loop over predictions, and what is drawn from labels."""

import pytest
import torch

from detectron2.config import get_cfg
from detectron2.modeling.matcher import Matcher, TopKMatcher
from detectron2.modeling.roi_heads import ROIHeads
from detectron2.modeling.sampling import subsample_labels


def slow_matches(quality, thresholds, labels, allow_low):
    """The rules, one prediction at a time."""
    matches, match_labels = [], []
    best_of_gt = [max(row) for row in quality]
    for column in range(len(quality[0])):
        values = [row[column] for row in quality]
        best = max(values)
        matches.append(values.index(best))
        label = labels[sum(best >= threshold for threshold in thresholds)]
        if allow_low and any(
            value == most > 0 for value, most in zip(values, best_of_gt, strict=True)
        ):
            label = 1
        match_labels.append(label)
    return matches, match_labels


@pytest.mark.parametrize("allow_low", [False, True])
def test_matches_equal_a_slow_loop(allow_low):
    generator = torch.Generator().manual_seed(0)
    matcher = Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=allow_low)
    for num_gt in (1, 2, 5):
        # tenths, so that there are ties and values at the thresholds
        quality = torch.randint(0, 11, (num_gt, 40), generator=generator) / 10
        matches, labels = matcher(quality)
        quality = [[round(value, 1) for value in row] for row in quality.tolist()]
        want_matches, want_labels = slow_matches(quality, [0.3, 0.7], [0, -1, 1], allow_low)
        assert matches.tolist() == want_matches and labels.tolist() == want_labels
        assert matches.dtype == torch.int64 and labels.dtype == torch.int8


def test_without_ground_truth_all_are_in_the_lowest_stratum():
    matches, labels = Matcher([0.5], [0, 1])(torch.zeros(0, 3))
    assert matches.tolist() == [0, 0, 0] and labels.tolist() == [0, 0, 0]
    assert Matcher([0.3, 0.7], [-1, 0, 1])(torch.zeros(0, 2))[1].tolist() == [-1, -1]
    assert Matcher([0.5], [0, 1])(torch.zeros(4, 0))[0].shape == (0,)


def test_ground_truth_that_nothing_touches_labels_nothing():
    matcher = Matcher([0.5], [0, 1], allow_low_quality_matches=True)
    assert matcher(torch.tensor([[0.0, 0.0], [0.2, 0.1]]))[1].tolist() == [1, 0]


@pytest.mark.parametrize(
    "thresholds,labels", [([], [0]), ([0.0], [0, 1]), ([0.7, 0.3], [0, 0, 1]), ([0.5], [0, 2])]
)
def test_wrong_strata_are_refused(thresholds, labels):
    with pytest.raises(ValueError):
        Matcher(thresholds, labels)
    with pytest.raises(ValueError, match=r"got \(3,\)"):
        Matcher([0.5], [0, 1])(torch.zeros(3))
    with pytest.raises(ValueError, match="at least 0"):
        Matcher([0.5], [0, 1])(torch.tensor([[float("nan")]]))


@pytest.mark.parametrize(
    "labels,want",
    [
        ([7] * 20 + [3] * 20 + [-1] * 5, (4, 12)),  # a quarter of 16 may be foreground
        ([7] * 20 + [3] * 2, (2, 14)),
        ([7] * 5 + [3] * 20, (4, 5)),  # too few negatives
        ([-1] * 5, (0, 0)),
    ],
)
def test_samples_have_the_wanted_parts(labels, want):
    labels = torch.tensor(labels)
    torch.manual_seed(0)
    positive, negative = subsample_labels(labels, 16, 0.25, bg_label=7)
    assert (len(positive), len(negative)) == want
    assert set(labels[positive].tolist()) <= {3} and set(labels[negative].tolist()) <= {7}
    assert len({*positive.tolist(), *negative.tolist()}) == sum(want)


def test_samples_are_random():
    labels = torch.zeros(1000, dtype=torch.int64)
    first, second = (subsample_labels(labels, 100, 0.5, bg_label=0)[1] for _ in range(2))
    assert not torch.equal(first, second)


def test_top_matches_equal_a_slow_loop():
    generator = torch.Generator().manual_seed(0)
    for num_gt, count, top in ((1, 40, 3), (4, 40, 3), (3, 2, 3), (5, 7, 1)):
        quality = torch.randint(0, 11, (num_gt, count), generator=generator) / 10
        matches, labels = TopKMatcher([0.5], [0, 1], top)(quality)
        rows = [[round(value, 1) for value in row] for row in quality.tolist()]
        chosen = [sorted(range(count), key=lambda n: -row[n])[:top] for row in rows]  # noqa: B023
        for n in range(count):
            own = [g for g in range(num_gt) if n in chosen[g] and rows[g][n] >= 0.5]
            assert labels[n] == bool(own)
            if own:
                assert matches[n] == max(own, key=lambda g: rows[g][n])  # noqa: B023


def test_top_matches_of_nothing():
    matcher = TopKMatcher([0.5], [0, 1])
    assert matcher(torch.zeros(0, 3))[1].tolist() == [0, 0, 0]
    assert matcher(torch.zeros(2, 0))[0].shape == (0,)


def test_heads_take_the_matcher_of_the_config():
    cfg = get_cfg()
    for name, kind in (("iou", Matcher), ("topk", TopKMatcher)):
        cfg.MODEL.ROI_HEADS.MATCHER = name
        assert type(ROIHeads.from_config(cfg)["proposal_matcher"]) is kind
    cfg.MODEL.ROI_HEADS.MATCHER = "best"
    with pytest.raises(ValueError, match="MATCHER='best'; expected one of"):
        ROIHeads.from_config(cfg)
