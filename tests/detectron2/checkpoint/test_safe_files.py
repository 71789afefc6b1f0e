"""What is read from checkpoint files, what is refused, and that writing is all or nothing."""

import collections
import os
import pickle

import numpy as np
import pytest
import torch

from detectron2.checkpoint.safe_files import (
    plain_data,
    read_pickle_file,
    read_torch_file,
    write_torch_file,
)


def write_pickle(path, data, protocol: int) -> str:
    path.write_bytes(pickle.dumps(data, protocol=protocol))
    return str(path)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_and_plain_containers_are_read(tmp_path, protocol):
    rng = np.random.RandomState(0)
    data = {
        "float": rng.randn(3, 4).astype(np.float32),
        "fortran": np.asfortranarray(rng.randn(3, 4)),
        "int": np.arange(5),
        "empty": np.zeros((0, 2)),
        "scalar": np.float64(0.1),
        "nested": collections.OrderedDict(a=[1, 2.5, None, True], b=(b"bytes", "text", {1, 2})),
    }
    got = read_pickle_file(write_pickle(tmp_path / "weights.pkl", data, protocol))
    assert list(got) == list(data)
    for name in ("float", "fortran", "int", "empty"):
        np.testing.assert_array_equal(got[name], data[name])
        assert got[name].dtype == data[name].dtype
    assert got["scalar"] == 0.1
    assert got["nested"] == data["nested"]


def test_arrays_of_python_2_are_read(tmp_path):
    values = np.array([1.5, -2.0], dtype="<f4")
    minus_one = b"J\xff\xff\xff\xff"
    dtype = b"cnumpy\ndtype\n(U\x02f4K\x00K\x01tR(K\x03U\x01<NNN" + minus_one * 2 + b"K\x00tb"
    empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
    array = empty + b"(K\x01(K\x02t" + dtype + b"\x89U\x08" + values.tobytes() + b"tb"
    path = tmp_path / "python2.pkl"
    path.write_bytes(b"\x80\x02}U\x07conv1_w" + array + b"s.")
    got = read_pickle_file(str(path))
    np.testing.assert_array_equal(got["conv1_w"], values)


def test_numpy_beside_tensors_is_read(tmp_path):
    """As in checkpoints that keep a best AP from pycocotools."""
    values = {"float": np.arange(3.0), "int": np.arange(4, dtype=np.int32), "bool": np.ones(2) > 0}
    data = {"weight": torch.ones(2), "best_AP": np.float64(0.31), "count": np.int64(7), **values}
    path = tmp_path / "model.pth"
    torch.save(data, path)
    got = read_torch_file(str(path))
    assert got["best_AP"] == 0.31 and got["count"] == 7
    for name, value in values.items():
        np.testing.assert_array_equal(got[name], value)


class Runs:
    """What a malicious file looks like: unpickling it calls a function."""

    def __reduce__(self):
        return os.mkdir, ("made-by-unpickling",)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_cannot_run_code(tmp_path, monkeypatch, protocol):
    monkeypatch.chdir(tmp_path)
    path = write_pickle(tmp_path / "bad.pkl", {"a": Runs()}, protocol)
    with pytest.raises(ValueError, match=r"bad\.pkl: it holds (posix|nt)\.mkdir; only numpy"):
        read_pickle_file(path)
    assert not os.path.exists("made-by-unpickling")


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (torch.zeros(1), "torch"),
        (np.random.RandomState, "numpy.random"),
        (eval, "builtins.eval"),
        (np.load, "numpy"),
        (getattr, "builtins.getattr"),
    ],
)
def test_other_classes_are_named(tmp_path, value, name):
    path = write_pickle(tmp_path / "bad.pkl", [np.zeros(2), value], 4)
    with pytest.raises(ValueError, match=f"it holds {name}"):
        read_pickle_file(path)


def test_codecs_other_than_latin1_are_refused(tmp_path):
    path = tmp_path / "bad.pkl"
    path.write_bytes(b"\x80\x02c_codecs\nencode\nX\x03\x00\x00\x00abcX\x05\x00\x00\x00rot13\x86R.")
    with pytest.raises(ValueError, match="encoding 'rot13'"):
        read_pickle_file(str(path))


def test_broken_files_are_named(tmp_path):
    path = tmp_path / "cut.pkl"
    path.write_bytes(pickle.dumps({"a": np.zeros(100)})[:-50])
    with pytest.raises(ValueError, match=r"cannot read the pickle .*cut\.pkl"):
        read_pickle_file(str(path))
    torch.save({"a": torch.zeros(1000)}, tmp_path / "cut.pth")
    whole = (tmp_path / "cut.pth").read_bytes()
    for size in (0, 100, len(whole) // 2):
        (tmp_path / "cut.pth").write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"cut\.pth"):
            read_torch_file(str(tmp_path / "cut.pth"))


def test_torch_files_with_code_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {}, "hook": Runs()}, "bad.pth")
    with pytest.raises(ValueError, match=r"(?s)bad\.pth holds more than tensors.*mkdir"):
        read_torch_file("bad.pth")
    assert not os.path.exists("made-by-unpickling")


def test_plain_data_can_be_written_and_read_back(tmp_path):
    data = {
        "best": np.float32(0.5),
        "iteration": np.int64(7),
        "nested": collections.defaultdict(list, a=[np.bool_(True), (1, np.float64(2.0))]),
        "state": {0: {"momentum_buffer": torch.ones(2)}},
        "kind": torch.float16,
        "device": torch.device("cpu"),
        "names": {"x", "y"},
        "nothing": None,
    }
    plain = plain_data(data, "extra")
    write_torch_file(plain, str(tmp_path / "a.pth"))
    got = read_torch_file(str(tmp_path / "a.pth"))
    assert torch.equal(got["state"][0].pop("momentum_buffer"), torch.ones(2))
    plain["state"][0].pop("momentum_buffer")
    assert got == plain
    assert type(got["best"]) is float and type(got["iteration"]) is int
    assert got["nested"] == {"a": [True, (1, 2.0)]}


def test_what_could_not_be_read_back_is_not_written():
    with pytest.raises(ValueError, match=r"cannot save hooks\['best'\]\[1\]: a numpy.ndarray"):
        plain_data({"best": [1, np.zeros(2)]}, "hooks")
    with pytest.raises(ValueError, match="Runs could not be read back"):
        plain_data(Runs(), "hook")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "model.pth"
    write_torch_file({"a": 1}, str(path))

    class FailsHalfWay:
        def __reduce__(self):
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_torch_file({"a": 2, "b": FailsHalfWay()}, str(path))
    assert read_torch_file(str(path)) == {"a": 1}
    assert os.listdir(tmp_path) == ["model.pth"]
