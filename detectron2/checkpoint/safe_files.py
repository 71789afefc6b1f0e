"""Read and write checkpoint files without ever running code from them.

Torch files, which may hold numpy arrays, too, are read by `torch.load(weights_only=True)`, pickles
of model zoos by an unpickler that knows numpy arrays and plain containers. Writing checks that what
is written can be read back so.
"""

import collections
import os
import pickle
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

__all__ = ["atomic_write", "plain_data", "read_pickle_file", "read_torch_file", "write_torch_file"]

# How numpy rebuilds its objects, taken from what it pickles, as their module differs by version.
_RECONSTRUCT_ARRAY = np.zeros(1).__reduce__()[0]
_RECONSTRUCT_SCALAR = np.float64(0).__reduce__()[0]
_RECONSTRUCT_BUFFER = np.zeros(1).__reduce_ex__(5)[0]


def _latin1_bytes(text: str, encoding: str) -> bytes:
    """Bytes in a pickle of protocol 2, which has none, are a text and this call."""
    if encoding != "latin1":
        raise ValueError(f"a pickle asks for the encoding {encoding!r}; only latin1 is allowed")
    return text.encode(encoding)


ALLOWED_GLOBALS = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _latin1_bytes,
    ("collections", "OrderedDict"): collections.OrderedDict,
}
for _core in ("numpy.core", "numpy._core"):
    ALLOWED_GLOBALS[(f"{_core}.multiarray", "_reconstruct")] = _RECONSTRUCT_ARRAY
    ALLOWED_GLOBALS[(f"{_core}.multiarray", "scalar")] = _RECONSTRUCT_SCALAR
    ALLOWED_GLOBALS[(f"{_core}.numeric", "_frombuffer")] = _RECONSTRUCT_BUFFER
for _builtins in ("builtins", "__builtin__"):
    for _type in (set, frozenset, bytes, bytearray, complex):
        ALLOWED_GLOBALS[(_builtins, _type.__name__)] = _type


# Arrays and scalars beside the tensors, such as a best AP, hold data alone, too.
_NUMPY_IN_TORCH_FILES = [
    *((value, f"{module}.{name}") for (module, name), value in ALLOWED_GLOBALS.items()),
    *{type(np.dtype(code)) for code in np.typecodes["AllInteger"] + np.typecodes["AllFloat"] + "?"},
]


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickler of numpy arrays and plain containers; any other class is an error."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return ALLOWED_GLOBALS[(module, name)]
        except KeyError:
            raise ValueError(
                f"it holds {module}.{name}; only numpy arrays, numbers, strings and plain "
                "containers are read from a pickle, since others may run code"
            ) from None


def read_pickle_file(path: str) -> Any:
    """Content of a `.pkl` file of arrays, also of one that Python 2 wrote."""
    with open(path, "rb") as file:
        try:
            return _ArrayUnpickler(file, encoding="latin1").load()
        except (ValueError, TypeError, EOFError, pickle.UnpicklingError) as error:
            raise ValueError(f"cannot read the pickle {path}: {error}") from error


def read_torch_file(path: str) -> Any:
    """Content of a file of `torch.save`, tensors on the CPU."""
    try:
        with torch.serialization.safe_globals(_NUMPY_IN_TORCH_FILES):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors, numbers, strings and plain containers, or is no file "
            "of torch.save; it is not read, since others may run code. In a place where you trust "
            f"it, save its 'model' alone again. torch says: {error}"
        ) from error
    except (RuntimeError, EOFError) as error:
        raise ValueError(
            f"{path} is not a whole file of torch.save; was its download or writing cut off? "
            f"torch says: {error}"
        ) from error


def plain_data(value: Any, name: str) -> Any:
    """`value` with numpy scalars as Python's numbers and mappings as dicts.

    Args:
        name: what `value` is, for the error about what could not be read back.
    """
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(
        value, bool | int | float | str | bytes | torch.Tensor | torch.dtype
    ):
        return value
    if isinstance(value, torch.device | torch.Size):
        return value
    if isinstance(value, Mapping):
        return {
            plain_data(key, f"a key of {name}"): plain_data(item, f"{name}[{key!r}]")
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        items = [plain_data(item, f"{name}[{i}]") for i, item in enumerate(value)]
        return tuple(items) if isinstance(value, tuple) else items
    if isinstance(value, set):
        return {plain_data(item, f"an item of {name}") for item in value}
    raise ValueError(
        f"cannot save {name}: a {type(value).__module__}.{type(value).__qualname__} could not be "
        "read back; checkpoints hold tensors, numbers, strings and plain containers"
    )


def write_torch_file(data: Any, path: str) -> None:
    """`torch.save` that leaves either the whole new file or what was there before."""

    def write(temporary: str) -> None:
        torch.save(data, temporary)

    atomic_write(path, write)


def atomic_write(path: str, write: Any) -> None:
    """Call `write` with a temporary name beside `path`, then give the file its name."""
    temporary = f"{path}.tmp"
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)
