"""Read files of named arrays (.npz): one reader, which checks a file before it fills the memory."""

import math
import os
import sys
import tokenize
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from weaklabels.files import ZIP_ERRORS

MAX_BYTES_VARIABLE = "WEAKLABELS_MAX_ARRAY_BYTES"
MAX_BYTES = 32 << 30  # of all arrays of a file together; a compressed file may hold a thousandfold
HEADERS = {  # of .npy, by version
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
PLAIN = "biufcSU"  # kinds of numpy's dtypes: numbers, bytes and text
# What zipfile and numpy raise for damaged files, encrypted ones, and objects.
DAMAGE = (*ZIP_ERRORS, OverflowError, SyntaxError, TypeError, IndexError, AttributeError)
DAMAGE += (tokenize.TokenError,)


def read_npz(path: str | Path, keys: Sequence[str], what: str) -> dict[str, np.ndarray]:
    """All arrays of an .npz file, without pickles.

    Args:
        keys: arrays that it must have.
        what: what the file holds, for messages.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no whole file of plain arrays, lacks some, or states more bytes than the
            limit, which the environment variable WEAKLABELS_MAX_ARRAY_BYTES raises.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file; expected {what} (.npz)")
    try:
        names = _checked_names(path)
        missing = [key for key in keys if key not in names]
        if not missing:
            with np.load(path, allow_pickle=False) as content:
                return {name: _checked(name, content[name]) for name in names}
    except DAMAGE as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{path}: expected a whole .npz file of {what}: {reason}; make or fetch it again"
        ) from error
    raise ValueError(f"{path} lacks {missing}; expected {what}, with {list(keys)}")


def _checked(name: str, array: np.ndarray) -> np.ndarray:
    """The array; ValueError where its text holds what is no character."""
    if array.dtype.kind == "U" and array.size:
        native = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
        if (native.reshape(-1).view(np.uint32) > sys.maxunicode).any():
            raise ValueError(f"{name} holds text that is no Unicode")
    return array


def _checked_names(path: str | Path) -> list[str]:
    """The names of the arrays; ValueError where one is not of plain values, or too large."""
    limit = int(os.environ.get(MAX_BYTES_VARIABLE) or MAX_BYTES)
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        stated = sum(member.file_size for member in members)
        if stated > limit:
            raise ValueError(f"it states {stated} bytes; {MAX_BYTES_VARIABLE}=N raises {limit}")
        for member in members:
            with archive.open(member) as file:
                shape, _, dtype = HEADERS[np.lib.format.read_magic(file)](file)
            if dtype.kind not in PLAIN:
                raise ValueError(f"{member.filename} holds {dtype}, not numbers or text")
            if not dtype.itemsize and math.prod(shape):
                raise ValueError(f"{member.filename} states {shape} values of no size")
            if math.prod(shape) * dtype.itemsize > member.file_size:
                raise ValueError(f"{member.filename} states a shape of {shape}, which it lacks")
    names = [member.filename.removesuffix(".npy") for member in members]
    if len(set(names)) < len(names):
        raise ValueError("it holds an array twice")
    return names
