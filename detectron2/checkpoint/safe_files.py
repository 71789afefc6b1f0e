"""Read and write checkpoint files without running code from them.

Torch files, which may also hold numpy arrays, are read by `torch.load(weights_only=True)`, pickles
of model zoos by an unpickler that knows numpy arrays and plain containers only. Writing checks that
the content can be read back this way.
"""

import collections
import pickle
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from weaklabels.files import atomic_bytes

# Functions by which numpy rebuilds objects. Their module depends on the version, so ask numpy.
_RECONSTRUCT_ARRAY = np.zeros(1).__reduce__()[0]
_RECONSTRUCT_SCALAR = np.float64(0).__reduce__()[0]
_RECONSTRUCT_BUFFER = np.zeros(1).__reduce_ex__(5)[0]


def _latin1_bytes(text: str, encoding: str) -> bytes:
    """Protocol 2 has no bytes: it stores them as text and a call of this function."""
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


class _LossHistory:
    """In place of the past losses in OpenMMLab's checkpoints, of which nothing is kept."""

    def __setstate__(self, state: Any) -> None:
        pass


def _no_attribute(*_: Any) -> None:
    """In place of `getattr`, by which those losses name their own methods."""


# Numpy arrays and scalars, such as a best AP, are data only.
_DATA_IN_TORCH_FILES = [
    (_LossHistory, "mmengine.logging.history_buffer.HistoryBuffer"),
    *((_no_attribute, f"{_builtins}.getattr") for _builtins in ("builtins", "__builtin__")),
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
                "containers are allowed, because other objects may run code"
            ) from None


def read_pickle_file(path: str) -> Any:
    """Content of a `.pkl` file of arrays, written by Python 2 or 3."""
    with open(path, "rb") as file:
        try:
            return _ArrayUnpickler(file, encoding="latin1").load()
        except (ValueError, TypeError, EOFError, pickle.UnpicklingError) as error:
            raise ValueError(f"cannot read the pickle {path}: {error}") from error


def read_torch_file(path: str) -> Any:
    """Content of a file written by `torch.save`, with tensors on the CPU."""
    try:
        with torch.serialization.safe_globals(_DATA_IN_TORCH_FILES):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors, numbers, strings and plain containers, or was not "
            "written by torch.save. It was not loaded, because other objects may run code. If you "
            f"trust it, load it elsewhere and save its 'model' only. torch says: {error}"
        ) from error
    except (RuntimeError, EOFError) as error:
        raise ValueError(
            f"{path} is not a complete file of torch.save: its download or writing may have been "
            f"cut off. torch says: {error}"
        ) from error


def read_safetensors(path: str) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors file by name, on the CPU."""
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a complete .safetensors file: {error}") from error


_PLAIN_TYPES = (
    *(bool, int, float, str, bytes),
    *(torch.Tensor, torch.dtype, torch.device, torch.Size),
)


def plain_data(value: Any, name: str) -> Any:
    """`value` with numpy scalars as Python numbers and mappings as dicts.

    Args:
        name: what to call `value` in the error for objects that could not be read back.
    """
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, _PLAIN_TYPES):
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
    """`torch.save` that leaves either the complete new file or the old one."""
    with atomic_bytes(path) as file:
        torch.save(data, file)
