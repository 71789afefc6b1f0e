import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from detectron2.data import transforms as T
from detectron2.data.transforms.polygon_clip import clip_polygon

coordinates = st.integers(-3, 13)
polygons = st.lists(st.tuples(coordinates, coordinates), min_size=3, max_size=9, unique=True)


def crossings(polygon, points):
    """(N,) number of polygon edges that a ray to the right from each point crosses."""
    count = np.zeros(len(points), dtype=int)
    for (ax, ay), (bx, by) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if ay == by:
            continue
        spans = (points[:, 1] >= min(ay, by)) & (points[:, 1] < max(ay, by))
        x = ax + (points[:, 1] - ay) * (bx - ax) / (by - ay)
        count += spans & (points[:, 0] < x)
    return count


@settings(max_examples=150, deadline=None)
@given(polygon=polygons, seed=st.integers(0, 2**31))
def test_pieces_cover_the_polygon_inside_the_window_and_nothing_else(polygon, seed):
    polygon = np.array(polygon, dtype=float)
    points = np.random.default_rng(seed).uniform(-4, 14, (200, 2))
    in_window = ((points > (0, 1)) & (points < (8, 10))).all(axis=1)
    pieces = clip_polygon(polygon, 0, 1, 8, 10)
    got = sum((crossings(piece, points) for piece in pieces), np.zeros(200, dtype=int)) % 2
    np.testing.assert_array_equal(got, crossings(polygon, points) % 2 * in_window)
    for piece in pieces:
        assert len(piece) >= 3
        assert (piece >= (0, 1)).all() and (piece <= (8, 10)).all()


def test_a_concave_polygon_falls_apart_without_bridges():
    comb = [[0, 0], [10, 0], [10, 6], [8, 6], [8, 2], [2, 2], [2, 6], [0, 6]]
    pieces = clip_polygon(np.array(comb), -5, 4, 20, 20)
    expected = [[[0, 4], [0, 6], [2, 6], [2, 4]], [[8, 4], [8, 6], [10, 6], [10, 4]]]
    assert sorted(piece.tolist() for piece in pieces) == expected


def test_a_polygon_inside_comes_back_in_canonical_form():
    square = np.array([[3, 2], [5, 2], [5, 4], [3, 4]])
    (piece,) = clip_polygon(square, 0, 0, 9, 9)
    assert piece.tolist() == [[3, 2], [3, 4], [5, 4], [5, 2]]
    assert clip_polygon(square, 6, 0, 9, 9) == []
    assert clip_polygon(square, 5, 0, 9, 9) == []  # touches only


def test_crop_moves_the_pieces_to_its_own_frame():
    square = np.array([[3.0, 2.0], [5.0, 2.0], [5.0, 4.0], [3.0, 4.0]])
    (piece,) = T.CropTransform(4, 1, 10, 2).apply_polygons([square])
    assert piece.tolist() == [[0, 1], [0, 2], [1, 2], [1, 1]]
