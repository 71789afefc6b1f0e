"""Point files: what is written comes back, and what is wrong is named."""

import numpy as np
import pytest

from weaksam.clues.points import PointFile, Points, read_npz, read_points, write_npz, write_points


def content():
    parts = [
        Points.of(np.array([[1.0, 2.0], [59.0, 49.0]]), np.array([1.0, 0.95]), 0, head=1, layer=12),
        Points.of(np.array([[0.0, 0.5]]), np.array([0.9]), 1),
    ]
    meta = {"classes": ["cat", "dog"], "source": "cross", "labels": "predicted"}
    points = (Points.joined(parts), Points.joined([]), parts[1])
    return PointFile(("7", "2008000002", "12"), ((50, 60), (9, 9), (4, 4)), points, meta)


def test_round_trip_and_equal_bytes(tmp_path):
    path = tmp_path / "points.npz"
    write_points(path, content())
    got, want = read_points(path), content()
    assert (got.ids, got.sizes_hw, got.meta) == (want.ids, want.sizes_hw, want.meta)
    for a, b in zip(got.points, want.points, strict=True):
        for name in ("xy", "cls", "score", "head", "layer"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
            assert getattr(a, name).dtype == getattr(b, name).dtype
    write_points(tmp_path / "again.npz", got)
    assert path.read_bytes() == (tmp_path / "again.npz").read_bytes()
    assert [p.name for p in tmp_path.iterdir()] and not list(tmp_path.glob("*.partial"))


def test_arrays_are_those_of_the_format(tmp_path):
    write_points(tmp_path / "points.npz", content())
    with np.load(tmp_path / "points.npz", allow_pickle=False) as arrays:
        assert arrays["offsets"].tolist() == [0, 3, 3, 4]
        assert arrays["offsets"].dtype == np.int64
        assert arrays["ids"].tolist() == ["7", "2008000002", "12"]
        assert arrays["sizes"].tolist() == [[50, 60], [9, 9], [4, 4]]
        assert arrays["layer"].tolist() == [12, 12, -1, -1]
        assert arrays["head"].tolist() == [1, 1, -1, -1]


def test_an_image_is_found_by_its_id():
    assert len(content().of_image(7)) == 3
    with pytest.raises(KeyError, match="no image id 8 among the 3"):
        content().of_image(8)


@pytest.mark.parametrize(
    "name,value,message",
    [
        ("xy", [[1, 2], [60, 49], [0, 0], [0, 0]], r"image id 7 has a point outside .*\[60.0, 49"),
        ("xy", [[1, 2], [5, np.nan], [0, 0], [0, 0]], "image id 7 has a point outside"),
        ("xy", [[1, 2], [5, 5], [0, 0], [-1, 0]], "image id 12 has a point outside"),
        ("score", [1, 1, 1, np.inf], "image id 12 has a score that is not finite"),
        ("cls", [0, 0, 2, 0], "image id 7 has a class that is not among the 2"),
    ],
)
def test_wrong_values_name_their_image(tmp_path, name, value, message):
    path = tmp_path / "points.npz"
    write_points(path, content())
    arrays = dict(np.load(path))
    write_npz(path, arrays | {name: np.array(value, arrays[name].dtype)})
    with pytest.raises(ValueError, match=message) as caught:
        read_points(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "name,change,message",
    [
        ("offsets", lambda a: a[:-1], "3 ids need 4 offsets"),
        ("offsets", lambda a: a[[0, 1, 2, 3]] * [1, 1, 0, 1], "offsets do not run"),
        ("offsets", lambda a: a + 1, "offsets do not run"),
        ("cls", lambda a: a.astype(np.int64), "cls is int64"),
        ("score", lambda a: a[:2], r"score is float32 \(2,\)"),
        ("ids", lambda a: a[[0, 0, 1]], "image id 7 occurs twice"),
        ("meta", lambda a: np.array("{"), "'meta' is no json"),
        ("meta", lambda a: np.array("{}"), "'meta' has no list 'classes'"),
    ],
)
def test_wrong_arrays_are_named(tmp_path, name, change, message):
    path = tmp_path / "points.npz"
    write_points(path, content())
    arrays = dict(np.load(path))
    write_npz(path, arrays | {name: change(arrays[name])})
    with pytest.raises(ValueError, match=message):
        read_points(path)


def test_foreign_broken_and_absent_files_are_named(tmp_path):
    path = tmp_path / "points.npz"
    with pytest.raises(FileNotFoundError, match="points.npz: no such file"):
        read_points(path)
    write_npz(path, {"xy": np.zeros(3)})
    with pytest.raises(ValueError, match="points.npz lacks .*'ids'"):
        read_points(path)
    np.savez(path, ids=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match="expected a whole .npz file of arrays"):
        read_npz(path, {"ids": ("U", 1)})
    write_points(path, content())
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match="expected a whole .npz"):
        read_points(path)


def test_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match="different lengths"):
        Points.of(np.zeros((2, 2)), np.zeros(3))
