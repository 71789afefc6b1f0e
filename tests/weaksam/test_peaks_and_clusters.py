"""Peaks of maps and clusters of points: fixtures, a sorting twin, and what always holds."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.weaksam import twins
from weaksam.clues.cluster import ClusterSettings, cluster_centers, cluster_points
from weaksam.clues.peaks import PeakSettings, find_peaks, normalize_map
from weaksam.clues.points import PointFile, Points, read_points, write_points

BUMPS = ((8, 10, 3, 1.0), (30, 30, 3, 0.97), (30, 5, 3, 0.91), (12, 30, 2, 0.5), (10, 15, 1, 0.95))


def hills():
    """40 x 40: the maximum of Gaussians (row, column, width, height)."""
    y, x = np.mgrid[:40, :40]
    bumps = [a * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * s**2)) for cy, cx, s, a in BUMPS]
    return normalize_map(np.max(bumps, axis=0).astype(np.float32))


def rows(found):
    return [(int(x), int(y), round(float(s), 3)) for (x, y), s in zip(*found, strict=True)]


def test_hills_have_three_peaks_and_the_near_one_is_left_out():
    found = rows(find_peaks(hills(), PeakSettings()))
    assert found == [(10, 8, 1.0), (30, 30, 0.97), (5, 30, 0.91)]


def test_a_flat_map_has_no_peak():
    for value in (0.0, 3.0):
        values = normalize_map(np.full((20, 30), value, np.float32))
        xy, scores = find_peaks(values, PeakSettings())
        assert xy.shape == (0, 2) and scores.shape == (0,)


def test_ties_of_a_plateau_come_by_row_and_column():
    values = np.zeros((40, 40), np.float32)
    values[10:20, 10:30] = 1
    found = rows(find_peaks(values, PeakSettings()))
    assert [(y, x) for x, y, _ in found] == [(10, 10), (10, 18), (10, 26)]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1, 3, 5, 9, 17, 129]), st.sampled_from([0.3, 0.9]))
def test_peaks_equal_those_by_sorting_and_keep_their_distance(seed, kernel, threshold):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 24, 2)
    values = (rng.integers(0, 12, (height, width)) / 11).astype(np.float32)  # with many ties
    options = PeakSettings(kernel, threshold)
    xy, scores = find_peaks(values, options)
    want = twins.peaks_by_sorting(values, kernel, threshold, options.most)
    assert [(x, y, s) for (x, y), s in zip(xy.tolist(), scores, strict=True)] == want
    assert len(xy) <= options.most and (scores >= threshold).all()
    for i, a in enumerate(xy):
        assert all(abs(a - b).sum() >= (kernel - 1) // 2 for b in xy[:i])


def test_a_map_is_stretched_to_its_range():
    values = np.array([[2.0, 4.0], [3.0, 2.5]], np.float32)
    np.testing.assert_allclose(normalize_map(values), twins.normalized(values), rtol=1e-6)


@pytest.mark.parametrize("wrong", [{"kernel": 4}, {"threshold": 0.0}, {"most": 0}])
def test_senseless_peak_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PeakSettings(**wrong)


GROUPS = (
    *((10, 10), (11, 10), (10, 12), (12, 11), (11, 12), (80, 80), (81, 82), (79, 80)),
    *((80, 83), (82, 80), (50, 20), (51, 21)),
)


@pytest.mark.parametrize("seed", range(5))
def test_two_groups_give_two_centers(seed):
    centers = cluster_centers(np.array(GROUPS, np.float32), ClusterSettings(seed=seed))
    assert sorted(centers.tolist()) == [[22, 13], [80, 81]]


def test_few_and_equal_points():
    cluster = ClusterSettings()
    assert cluster_centers(np.zeros((0, 2), np.float32), cluster).shape == (0, 2)
    one = np.array([[3.0, 7.0]], np.float32)
    np.testing.assert_array_equal(cluster_centers(one, cluster), one)
    np.testing.assert_array_equal(cluster_centers(np.repeat(one, 20, axis=0), cluster), one)
    pair = np.concatenate([np.repeat(one, 9, axis=0), one + 5])
    assert len(cluster_centers(pair, cluster)) == 2


def test_every_center_has_points_and_the_seed_decides():
    xy = np.random.default_rng(0).integers(0, 200, (157, 2)).astype(np.float32)
    centers = cluster_centers(xy, ClusterSettings())
    assert len(centers) <= 157 // 5
    np.testing.assert_array_equal(centers, cluster_centers(xy, ClusterSettings()))
    nearest = np.linalg.norm(xy[:, None] - centers, axis=2).argmin(axis=1)
    assert len(set(nearest)) > 0.9 * len(centers)


def test_clusters_of_a_file(tmp_path):
    groups = Points.of(np.array(GROUPS), np.linspace(0.9, 1, 12), class_index=1, head=2, layer=9)
    content = PointFile(
        ("4", "9"),
        ((100, 90), (50, 60)),
        (groups, Points.joined([])),
        {"classes": ["a", "b"], "source": "cross", "labels": "given"},
    )
    write_points(tmp_path / "cross.npz", content)
    cluster_points(tmp_path / "cross.npz", tmp_path / "clusters.npz")
    found = read_points(tmp_path / "clusters.npz")
    assert sorted(found.of_image(4).xy.tolist()) == [[22, 13], [80, 81]]
    assert set(found.of_image("4").cls) == {-1} and set(found.of_image(4).layer) == {-1}
    assert len(found.of_image(9)) == 0
    assert found.meta["clusters"]["points_per_cluster"] == 5
    assert found.meta["labels"] == "given"
    skipped = json.loads((tmp_path / "clusters.skipped.json").read_text())
    assert skipped == [{"image_id": "9", "reason": "no point"}]
