"""Matching by points and boundary IoU, against brute force."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as mask_utils

from weaklabels.matching import Label, match_labels
from weaklabels.statistics import ImageLabels, boundary_iou, judge, size_class, summarize


def box(x0, y0, x1, y1, shape=(40, 60)):
    """A filled box, last row and column included: (H, W) uint8."""
    mask = np.zeros(shape, np.uint8)
    mask[y0 : y1 + 1, x0 : x1 + 1] = 1
    return mask


def match_points(truth, pseudo):
    return dict(match_labels(truth, pseudo, "likeliest"))


def label(mask, point=None, category=1, **fields):
    if point is None:
        ys, xs = np.nonzero(mask)
        point = (xs.mean(), ys.mean())
    return Label(category, mask_utils.encode(np.asfortranarray(mask)), point, **fields)


def test_exact_points_win_over_masks():
    """A ring's point lies in the disc in its hole: the points still say which is which."""
    outer, inner = box(10, 10, 30, 32), box(15, 15, 25, 29)
    ring, disc = label(outer - box(14, 14, 26, 30)), label(inner)
    assert inner[round(ring.point[1]), round(ring.point[0])]
    wrong = box(40, 0, 59, 10)  # what the masks look like does not matter
    pseudo = [label(wrong, (disc.point[0], disc.point[1])), label(wrong, ring.point)]
    assert ring.point != disc.point
    truth = [ring, disc]
    nearer = np.linalg.norm(np.subtract(ring.point, disc.point))
    assert nearer < 2
    assert match_points(truth, pseudo) == {0: 1, 1: 0}


def test_a_point_in_a_mask_beats_a_nearer_centre():
    wide, small = label(box(0, 0, 50, 10)), label(box(44, 14, 48, 18))
    pseudo = [label(box(0, 0, 3, 3), (46.0, 9.0))]  # 7 px from the small one's centre
    assert match_points([small, wide], pseudo) == {1: 0}


def test_a_point_beside_its_mask_is_still_matched_and_a_far_one_is_not():
    truth = [label(box(20, 10, 30, 20))]
    mask = box(0, 0, 3, 3)
    assert match_points(truth, [label(mask, (32.0, 15.0))]) == {0: 0}
    assert match_points(truth, [label(mask, (45.0, 15.0))]) == {}


def test_classes_and_crowds_never_mix():
    mask = box(5, 5, 20, 20)
    assert match_points([label(mask, category=1)], [label(mask, category=2)]) == {}
    assert match_points([label(mask, crowd=True)], [label(mask)]) == {}
    assert match_points([], [label(mask)]) == {}
    assert match_points([label(mask)], []) == {}


def test_two_labels_of_one_point_are_one_match():
    truth = [label(box(5, 5, 20, 20)), label(box(30, 5, 40, 20))]
    assert match_points(truth, [truth[0], truth[0]]) in ({0: 0}, {0: 1})


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_assignment_is_the_best_of_all(data):
    """Several instances with one mask: the least sum of distances, found by trying all."""
    count = data.draw(st.integers(1, 4))
    big = box(0, 0, 59, 39)
    coordinates = st.tuples(st.integers(0, 59), st.integers(0, 39))
    centres = data.draw(st.lists(coordinates, min_size=count, max_size=count, unique=True))
    shift = st.tuples(st.floats(2, 9), st.floats(-3, 3))
    shifts = data.draw(st.lists(shift, min_size=count, max_size=count))
    points = np.clip(np.add(centres, shifts), 0, (59, 39)).tolist()
    truth = [label(big, c) for c in centres]
    pseudo = [label(big, tuple(p)) for p in points]
    distances = np.array([[np.hypot(*np.subtract(c, p)) for p in points] for c in centres])
    if (distances <= 1).any():
        return  # an exact point: another kind of match
    best = min(
        sum(distances[i, j] for i, j in enumerate(order))
        for order in itertools.permutations(range(count))
    )
    matches = match_points(truth, pseudo)
    assert len(matches) == count
    assert sum(distances[i, j] for i, j in matches.items()) == pytest.approx(best)


MASKS = arrays(np.uint8, (9, 14), elements=st.integers(0, 1))


def slow_band(mask, reach):
    """Pixels of the mask with anything else, or the image's outside, within `reach` in x and y."""
    height, width = mask.shape
    band = np.zeros(mask.shape, bool)
    steps = range(-reach, reach + 1)
    for y, x in zip(*np.nonzero(mask), strict=True):
        for v, u in itertools.product(steps, steps):
            inside = 0 <= y + v < height and 0 <= x + u < width
            band[y, x] |= not inside or mask[y + v, x + u] == 0
    return band


@settings(max_examples=40, deadline=None)
@given(MASKS, MASKS)
def test_boundary_iou_matches_its_definition(first, second):
    bands = [slow_band(mask, 1) for mask in (first, second)]
    union = (bands[0] | bands[1]).sum()
    want = (bands[0] & bands[1]).sum() / union if union else 0.0
    assert boundary_iou(first, second) == pytest.approx(want)


def test_boundary_band_grows_with_the_image():
    """300 x 400: diagonal 500, so a band of 10 pixels."""
    full, hole = box(50, 50, 149, 149, (300, 400)), box(60, 60, 139, 139, (300, 400))
    ring = full - hole
    assert boundary_iou(full, ring) == 1.0
    thicker = full - box(61, 61, 138, 138, (300, 400))
    assert boundary_iou(full, thicker) < 1.0


def test_outcomes_and_their_summary():
    first, second = label(box(0, 0, 9, 9)), label(box(30, 10, 39, 29), category=2)
    crowd = label(box(50, 0, 59, 9), crowd=True)
    half = label(box(0, 0, 9, 4), first.point)
    entry = ImageLabels({}, [first, crowd, second], [half], {0: 0})
    outcomes = judge(entry)
    assert [(o.category_id, o.area, o.labeled, o.iou) for o in outcomes] == [
        (1, 100, True, 0.5),
        (2, 200, False, 0.0),
    ]
    summary = summarize(outcomes)
    assert summary["points"] == 2
    assert summary["labelled"] == 1
    assert summary["recall"] == summary["recall_iou50"] == summary["miou_labelled"] == 50.0
    assert summary["miou"] == 25.0


def test_summary_of_nothing_says_so():
    summary = summarize([])
    assert summary["points"] == summary["labelled"] == 0
    assert summary["recall"] is None
    assert summary["miou"] is None


@pytest.mark.parametrize(
    ("area", "name"), [(1023, "small"), (1024, "medium"), (9215, "medium"), (9216, "large")]
)
def test_size_classes(area, name):
    assert size_class(area) == name
