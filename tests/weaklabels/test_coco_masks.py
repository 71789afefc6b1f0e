"""Run lengths against decoded masks: centre of mass, pixels, and refusal of broken masks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as mask_utils

from tests.weaklabels.coco_samples import compressed, uncompressed
from weaklabels.masks import Runs, check_segmentation, segmentation_rle

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
