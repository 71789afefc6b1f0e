"""Arrays of many images in one .npz file, without pickles; rows of an image lie together."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from weaklabels.arrays import read_npz as arrays_of
from weaklabels.files import atomic_bytes


def write_npz(path: str | Path, arrays: dict[str, np.ndarray], *, compress: bool = False) -> None:
    """Write arrays, whole or not at all; equal arrays give equal bytes."""
    with atomic_bytes(path) as file:
        (np.savez_compressed if compress else np.savez)(file, **arrays)


def read_npz(path: str | Path, keys: Sequence[str]) -> dict[str, np.ndarray]:
    """The arrays `keys` of an .npz file; errors as those of `weaklabels.arrays.read_npz`."""
    arrays = arrays_of(path, keys, "arrays")
    return {key: arrays[key] for key in keys}


def check_offsets(
    path: str | Path, ids: np.ndarray, offsets: np.ndarray, sizes: np.ndarray, rows: int
) -> None:
    """ValueError where image i cannot have the rows offsets[i] to offsets[i + 1] of `rows`.

    Args:
        ids: (N,), each once.  offsets: (N + 1,) whole numbers.  sizes: (N, 2), height and width.
    """
    count = len(ids)
    if offsets.dtype.kind != "i" or offsets.shape != (count + 1,) or sizes.shape != (count, 2):
        raise ValueError(
            f"{path}: {count} ids need {count + 1} offsets, whole numbers, and sizes of 2, got "
            f"{offsets.dtype} {offsets.shape} and {sizes.shape}"
        )
    if offsets[0] != 0 or offsets[-1] != rows or (np.diff(offsets) < 0).any():
        raise ValueError(f"{path}: offsets do not run from 0 to the {rows} rows")
    names, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        raise ValueError(f"{path}: image id {names[counts > 1][0]} occurs twice")
