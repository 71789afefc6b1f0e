"""Run lengths against decoded masks: centre of mass, pixels, and refusal of broken masks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as mask_utils

from tests.weaklabels.coco_samples import compressed, uncompressed
from weaklabels.masks import (
    MAX_SIDE,
    Runs,
    center_of_mass,
    check_image_size,
    check_segmentation,
    decode_mask,
    drawable_polygons,
    encode_mask,
    mask_fields,
    run_lengths,
    segmentation_rle,
)
from weaklabels.points import checked_point

MASKS = st.tuples(st.integers(1, 12), st.integers(1, 12)).flatmap(
    lambda shape: arrays(np.uint8, shape, elements=st.integers(0, 1))
)


@settings(max_examples=150, deadline=None)
@given(MASKS, st.data())
def test_runs_agree_with_the_decoded_mask(mask, data):
    height, width = mask.shape
    for segmentation in (compressed(mask), uncompressed(mask)):
        runs = Runs.of(segmentation_rle(segmentation, height, width))
        assert runs.area == mask.sum()
        assert all(runs.holds(x, y) == mask[y, x] for y in range(height) for x in range(width))
    if mask.any():
        ys, xs = np.nonzero(mask)
        np.testing.assert_allclose(runs.center_of_mass(), (xs.mean(), ys.mean()), atol=1e-12)
        pixels = [runs.pixel(i) for i in range(runs.area)]
        assert sorted(pixels) == sorted(zip(xs.tolist(), ys.tolist(), strict=True))
        x, y = data.draw(st.tuples(st.integers(-2, width + 2), st.integers(-2, height + 2)))
        nearest = min(pixels, key=lambda p: ((p[0] - x) ** 2 + (p[1] - y) ** 2, p))
        assert runs.nearest_pixel(x, y) == nearest


def test_long_runs_and_large_images():
    mask = np.zeros((900, 1100), np.uint8)
    mask[3:890, 5:1000] = 1
    mask[100:102] = 0
    runs = Runs.of(segmentation_rle(compressed(mask), 900, 1100))
    ys, xs = np.nonzero(mask)
    np.testing.assert_allclose(runs.center_of_mass(), (xs.mean(), ys.mean()), rtol=1e-12)


def test_polygons_are_rasterised_as_pycocotools_does():
    polygons = [[1.0, 1.0, 9.0, 1.5, 5.0, 8.0], [10.0, 2.0, 14.0, 2.0, 14.0, 9.0, 10.0, 9.0]]
    want = mask_utils.decode(mask_utils.merge(mask_utils.frPyObjects(polygons, 12, 16)))
    np.testing.assert_array_equal(mask_utils.decode(segmentation_rle(polygons, 12, 16)), want)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([], "no mask"),
        (None, "no mask"),
        ({"size": [4, 5]}, "no mask"),
        ([[1.0, 2.0, 3.0, 4.0]], "3 corners"),
        ([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]], "3 corners"),
        ([[1.0, 2.0, 3.0, float("nan"), 5.0, 6.0]], "not finite"),
        ({"size": [5, 4], "counts": [20]}, "size"),
        ({"size": [4, 5], "counts": [19]}, "add up"),
        ({"size": [4, 5], "counts": [-1, 21]}, "add up"),
        ({"size": [4, 5], "counts": "0"}, "add up"),
        ({"size": [4, 5], "counts": ""}, "compressed form"),
        ({"size": [4, 5], "counts": "\x7f"}, "compressed form"),
        ({"size": [4, 5], "counts": "P"}, "compressed form"),
        ({"size": [4, 5], "counts": None}, "counts are None"),
        ({"size": [4, 5], "counts": 20}, "counts are 20"),
        ({"size": [4, 5], "counts": {}}, "counts are {}"),
        ({"size": [4, 5], "counts": [None]}, "whole numbers"),
        ({"size": [4, 5], "counts": ["20"]}, "whole numbers"),
        ({"size": [4, 5], "counts": [[20]]}, "whole numbers"),
        ({"size": [4, 5], "counts": [20.5]}, "whole numbers"),
        ({"size": None, "counts": [20]}, "RLE of size None"),
        ({"size": 4, "counts": [20]}, "RLE of size 4"),
        ({"size": ["4", "5"], "counts": [20]}, "RLE of size"),
        ({"size": [0, 0], "counts": "0"}, "RLE of size"),
        ({"size": [10**9, 10**9], "counts": [20]}, "RLE of size"),
        ({"size": [2**32 + 4, 5], "counts": [20]}, "RLE of size"),
        ({"size": [4, 5], "counts": "zzzz"}, "cut off"),
        ({"size": [4, 5], "counts": "11"}, "add up"),
        ({"size": [4, 5], "counts": "o0O"}, "add up"),
        ({"size": [4, 5], "counts": b"11"}, "add up"),
        ({"size": [4, 5], "counts": "é"}, "compressed form"),
        ({"size": [4, 5], "counts": "oooooooooooo1"}, "more than 32 bits"),
        ({"size": [4, 5], "counts": []}, "add up"),
        ({"size": [4, 5], "counts": [10**30, -(10**30), 20]}, "add up"),
        ({"size": [4, 5], "counts": [True, 19]}, "whole numbers"),
        ([1, 1, 4, 1, 4, 3], "3 corners"),
        ([[1, 1, 4, 1, 4, 10**400]], "farther outside|not finite"),
        ([[1.0, 2.0, 3.0, 1e9, 5.0, 6.0]], "farther outside than the image is large: y 1e.09"),
        ([[1.0, 2.0, -5.1, 2.0, 5.0, 6.0]], "farther outside than the image is large: x -5.1"),
        ([[1.0, 2.0, 1e308, 2.0, 5.0, 6.0]], "farther outside"),
        ([[1.0, 2.0, float("inf"), 2.0, 5.0, 6.0]], "not finite"),
        ([[1.0, 2.0, True, 2.0, 5.0, 6.0]], "not a number"),
        ([["1", "2", "3", "4", "5", "6"]], "not a number"),
        ([["a", "b", "c", "d", "e", "f"]], "not a number"),
        ([[1.0, 2.0, 3.0, None, 5.0, 6.0]], "not a number"),
        ([[[1.0, 2.0], [3.0], [5.0, 6.0], [1.0], [2.0], [3.0]]], "not a number"),
    ],
)
def test_broken_masks_are_refused(segmentation, message):
    with pytest.raises(ValueError, match=message):
        segmentation_rle(segmentation, 4, 5)
    with pytest.raises(ValueError, match=message):
        check_segmentation(segmentation, 4, 5)


def test_a_check_does_not_rasterise(monkeypatch):
    monkeypatch.setattr("weaklabels.masks.mask_utils", None)
    check_segmentation([[1, 1, 3, 1, 3, 3.5]], 4, 5)
    check_segmentation({"size": [4, 5], "counts": [2, 18]}, 4, 5)
    check_segmentation(compressed(np.ones((4, 5), np.uint8)), 4, 5)


def test_polygons_of_two_corners_are_left_out():
    """They cover nothing, and pycocotools takes a list of them for boxes."""
    good, line, odd = [1.0, 1.0, 4.0, 1.0, 4.0, 3.0, 1.0, 3.0], [1, 1, 5, 4], [1, 1, 4, 1, 4, 3, 1]
    want = segmentation_rle([good], 5, 6)
    assert want["counts"]
    for polygons in ([line, good], [good, line], [good, odd]):
        assert segmentation_rle(polygons, 5, 6) == want
        assert drawable_polygons(polygons, 5, 6) == [good]
        check_segmentation(polygons, 5, 6)
    assert drawable_polygons([line, odd], 5, 6) == []


def test_polygons_may_leave_the_image_by_its_own_size():
    edge = [[-6.0, -5.0, 12.0, -5.0, 12.0, 10.0, -6.0, 10.0]]
    assert decode_mask(edge, 5, 6).all()


@given(st.binary(max_size=12) | st.text(max_size=12), st.integers(1, 6), st.integers(1, 6))
def test_corrupt_counts_are_refused_or_fill_the_image(counts, height, width):
    """What passes decodes, and pycocotools agrees on every pixel."""
    segmentation = {"size": [height, width], "counts": counts}
    try:
        runs = Runs.of(segmentation_rle(segmentation, height, width))
    except ValueError:
        return
    assert run_lengths(counts).sum() == height * width
    mask = decode_mask(segmentation, height, width)
    assert mask.shape == (height, width) and mask.sum() == runs.area


@settings(max_examples=100, deadline=None)
@given(MASKS, st.data())
def test_a_changed_character_never_gives_another_size(mask, data):
    """One character of valid counts replaced: refused, or a mask of the same size."""
    height, width = mask.shape
    counts = compressed(mask)["counts"]
    place = data.draw(st.integers(0, len(counts) - 1))
    character = chr(data.draw(st.integers(40, 120)))
    changed = counts[:place] + character + counts[place + 1 :]
    try:
        got = decode_mask({"size": [height, width], "counts": changed}, height, width)
    except ValueError:
        return
    back = encode_mask(got)
    assert decode_mask(back, height, width).tolist() == got.tolist()


@settings(max_examples=100, deadline=None)
@given(MASKS)
def test_masks_survive_encoding_and_their_fields_are_measured(mask):
    rle = encode_mask(mask)
    assert rle == compressed(mask)
    np.testing.assert_array_equal(decode_mask(rle, *mask.shape), mask)
    fields = mask_fields(rle)
    assert fields["area"] == mask.sum() and fields["segmentation"] == rle
    assert all(isinstance(value, float) for value in fields["bbox"])
    if mask.any():
        ys, xs = np.nonzero(mask)
        box = [xs.min(), ys.min(), xs.max() - xs.min() + 1, ys.max() - ys.min() + 1]
        assert fields["bbox"] == box
        assert center_of_mass(mask) == pytest.approx((xs.mean(), ys.mean()))
    else:
        assert center_of_mass(mask) is None


@pytest.mark.parametrize(
    "size", [(0, 5), (5, -1), (5.0, 5), ("5", 5), (None, 5), (MAX_SIDE + 1, 1), (10**9, 10**9)]
)
def test_image_sizes_are_whole_positive_and_possible(size):
    with pytest.raises(ValueError, match="whole numbers from 1"):
        check_image_size(*size)
    with pytest.raises(ValueError, match="pixels"):
        check_image_size(MAX_SIDE, MAX_SIDE)


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ([40.5, 3], "outside the image of width 40, height 30"),
        ([-1, 3], "outside"),
        ([float("nan"), 3], "not finite"),
        ([float("inf"), 3], "not finite"),
        *((wrong, r"not \[x, y\]") for wrong in ([3], [1, 2, 3], 4, None, "12", ["1", 2])),
        *((wrong, r"not \[x, y\]") for wrong in ([None, 1], [True, 2], {"x": 1, "y": 2})),
    ],
)
def test_points_are_pairs_of_numbers_in_the_image(point, message):
    assert checked_point([40, 0.5], 30, 40) == (40.0, 0.5)
    with pytest.raises(ValueError, match=message):
        checked_point(point, 30, 40)
