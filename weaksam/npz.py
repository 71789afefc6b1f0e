"""Arrays of many images in one .npz file, without pickles; rows of an image lie together."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from weaklabels.arrays import read_npz as arrays_of
from weaklabels.files import atomic_bytes
from weaklabels.masks import MAX_SIDE

Form = tuple[str, int]  # kinds of numpy's dtypes that an array may have, and how many axes
IDS, NUMBERS, WHOLE, TEXT = "Uiu", "fiu", "iu", "U"


def write_npz(path: str | Path, arrays: dict[str, np.ndarray], *, compress: bool = False) -> None:
    """Write arrays, whole or not at all; equal arrays give equal bytes."""
    with atomic_bytes(path) as file:
        (np.savez_compressed if compress else np.savez)(file, **arrays)


def read_npz(path: str | Path, forms: Mapping[str, Form]) -> dict[str, np.ndarray]:
    """The arrays of an .npz file that `forms` names.

    Raises:
        ValueError: as `weaklabels.arrays.read_npz`, or an array is of another kind or has another
            number of axes.
    """
    arrays = arrays_of(path, tuple(forms), "arrays")
    for key, (kinds, axes) in forms.items():
        found = arrays[key]
        if found.dtype.kind not in kinds or found.ndim != axes:
            raise ValueError(
                f"{path}: {key} is an array of {found.dtype} and shape {found.shape}; expected "
                f"{axes} axes and a dtype of kind {kinds!r}: make or fetch the file again"
            )
    return {key: arrays[key] for key in forms}


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
    low, high = (int(sizes.min()), int(sizes.max())) if count else (1, 1)
    if low < 1 or high > MAX_SIDE:
        raise ValueError(f"{path}: sizes of {low} to {high} pixels; expected 1 to {MAX_SIDE}")
    if offsets[0] != 0 or offsets[-1] != rows or (np.diff(offsets) < 0).any():
        raise ValueError(f"{path}: offsets do not run from 0 to the {rows} rows")
    names, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        name = names[counts > 1][0]
        raise ValueError(f"{path}: image id {name} occurs twice; make or fetch the file again")
