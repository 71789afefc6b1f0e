"""Read and write checkpoint files without running code from them.

Torch files, which may also hold numpy arrays, are read by `torch.load(weights_only=True)`, pickles
of model zoos by `weaklabels.array_pickle`. Writing checks that
the content can be read back this way.
"""

import _codecs
import collections
import pickle
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from weaklabels.array_pickle import read_array_pickle, safe_bytearray, safe_bytes
from weaklabels.files import atomic_bytes, refuse_inflated_zip

# Functions and types by which numpy rebuilds arrays and scalars in torch's files, which lets them
# make no other dtypes than those listed. Their module depends on the version, so ask numpy.
_BUILTINS = ("builtins", "__builtin__")
_BUILDERS = {
    "multiarray._reconstruct": np.zeros(1).__reduce__()[0],
    "multiarray.scalar": np.float64(0).__reduce__()[0],
    "numeric._frombuffer": np.zeros(1).__reduce_ex__(5)[0],
}


class _LossHistory:
    """In place of the past losses in OpenMMLab's checkpoints, of which nothing is kept."""

    def __setstate__(self, state: Any) -> None:
        pass


def _no_attribute(*_: Any) -> None:
    """In place of `getattr`, by which those losses name their own methods."""


# Numpy arrays and scalars, such as a best AP, are data only.
_DATA_IN_TORCH_FILES = [
    (_LossHistory, "mmengine.logging.history_buffer.HistoryBuffer"),
    *((_no_attribute, f"{module}.getattr") for module in _BUILTINS),
    *(
        (f, f"{core}.{name}")
        for name, f in _BUILDERS.items()
        for core in ("numpy.core", "numpy._core")
    ),
    *(
        np.ndarray,
        np.dtype,
        collections.OrderedDict,
        complex,
        *((safe_bytes, f"{module}.bytes") for module in _BUILTINS),
        *((safe_bytearray, f"{module}.bytearray") for module in _BUILTINS),
        (_codecs.encode, "_codecs.encode"),
    ),
    *{type(np.dtype(code)) for code in np.typecodes["AllInteger"] + np.typecodes["AllFloat"] + "?"},
]


read_pickle_file = read_array_pickle


def read_torch_file(path: str) -> Any:
    """Content of a file written by `torch.save`, with tensors on the CPU."""
    refuse_inflated_zip(path)
    try:
        with torch.serialization.safe_globals(_DATA_IN_TORCH_FILES):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors, numbers, strings and plain containers, or was not "
            "written by torch.save. It was not loaded, because other objects may run code. If you "
            f"trust it, load it elsewhere and save its 'model' only. torch says: {error}"
        ) from error
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except Exception as error:  # a broken or foreign file may raise anything
        raise ValueError(
            f"{path} is not a complete file of torch.save: its download or writing may have been "
            f"cut off; download it or make it again. torch says: {error}"
        ) from error


def check_weights(weights: Any, path: str) -> None:
    """Refuse a state dict that holds something else than named arrays of numbers, or NaN."""
    for name, value in weights.items() if isinstance(weights, Mapping) else [(None, weights)]:
        is_array = isinstance(value, np.ndarray | torch.Tensor) and value.dtype != object
        if not isinstance(name, str) or not is_array:
            raise ValueError(
                f"{path}: {name} is a {type(value).__name__}; expected arrays of numbers by name"
            )
        try:
            tensor = torch.as_tensor(value)
        except (TypeError, ValueError) as error:  # of a dtype or byte order that torch lacks
            raise ValueError(f"{path}: {name} cannot be a tensor: {error}") from error
        if tensor.is_floating_point() and tensor.isnan().any():
            raise ValueError(
                f"{path}: {name} holds NaN: the training diverged; use an earlier checkpoint"
            )


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
