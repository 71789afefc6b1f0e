"""Files of arrays that are read, and damaged or hostile ones that are refused."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from weaklabels.arrays import MAX_BYTES_VARIABLE, read_npz

ARRAYS = {"ids": np.array(["a", "b"]), "xy": np.arange(6, dtype=np.float32).reshape(3, 2)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    np.savez_compressed(tmp_path / "a.npz", **ARRAYS)
    return tmp_path / "a.npz"


def npy(shape: tuple, dtype: str = "<f8", data: bytes = b"") -> bytes:
    """A .npy file whose header states a shape."""
    file = io.BytesIO()
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + data


def write_members(path: Path, *members: tuple[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)


def test_arrays_come_back(path):
    got = read_npz(path, ("ids", "xy"), "points")
    assert list(got) == list(ARRAYS)
    assert all(np.array_equal(got[name], value) for name, value in ARRAYS.items())


FAULTS = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("no arrays"),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-30]),
    "zeros in it": lambda path: path.write_bytes(path.read_bytes()[:50] + bytes(60)),
    "one array": lambda path: path.write_bytes(npy((1,), data=b"\0" * 8)),
    "objects": lambda path: np.savez(path, ids=np.array([{}, []], object), xy=ARRAYS["xy"]),
    "objects in a structure": lambda path: write_members(
        path, ("ids.npy", npy((0,), "|O")), ("xy.npy", npy((0,)))
    ),
    "a shape without content": lambda path: write_members(
        path, ("ids.npy", npy((10**12,))), ("xy.npy", npy((0,)))
    ),
    "a negative shape": lambda path: write_members(
        path, ("ids.npy", npy((-1,))), ("xy.npy", npy((0,)))
    ),
    "no .npy": lambda path: write_members(path, ("ids.npy", b"hello"), ("xy.npy", b"")),
    "an array is missing": lambda path: np.savez(path, ids=ARRAYS["ids"]),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_files_that_cannot_be_read_are_named(path, fault):
    FAULTS[fault](path)
    with pytest.raises((ValueError, FileNotFoundError), match=r"a\.npz.*(again|expected points)"):
        read_npz(path, ("ids", "xy"), "points")


def test_a_file_that_would_fill_the_memory_is_refused(path, monkeypatch):
    np.savez_compressed(path, ids=np.zeros(10**6), xy=np.zeros(1))
    assert path.stat().st_size < 10**4
    monkeypatch.setenv(MAX_BYTES_VARIABLE, "1000000")
    with pytest.raises(ValueError, match=f"{MAX_BYTES_VARIABLE}=N raises 1000000"):
        read_npz(path, ("ids",), "points")
    monkeypatch.setenv(MAX_BYTES_VARIABLE, "9000000")
    assert len(read_npz(path, ("ids",), "points")["ids"]) == 10**6
