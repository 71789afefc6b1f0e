"""Read pickles of numeric arrays and plain containers, and nothing else.

A pickle says which functions make its objects. Numpy's own trust their arguments: a structured
dtype that hides Python objects makes an array of addresses that the file chose. So none of them is
called here. Stand-ins collect what the file says of a dtype or an array, and arrays of numbers are
made from raw bytes of the right length.
"""

import collections
import math
import os
import pickle
import re
import struct
from collections.abc import Iterable
from typing import Any, BinaryIO

import numpy as np

PLAIN_TYPES = (dict, list, tuple, set, frozenset, str, bytes, bytearray, int, float, complex)
PLAIN_TYPES += (type(None), np.ndarray)
NUMERIC = re.compile(r"[<>|=]?([biuf][1248]|f16|c8|c16|b1|\?)")  # codes of plain numbers


class ArrayUnpickler(pickle._Unpickler):
    """Unpickler of numeric arrays, numbers, texts and plain containers; all else is an error.

    It stands on the unpickler in Python, because that in C makes room for as many memorized
    objects as a file states, and overwrites attributes of the stand-ins where a file says so.
    """

    dispatch = dict(pickle._Unpickler.dispatch)

    def load(self) -> Any:
        return _real(super().load(), {})

    def load_build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if not isinstance(target, _Array | _Dtype):
            raise ValueError(f"it sets attributes of a {type(target).__name__}")
        target.__setstate__(state)

    dispatch[pickle.BUILD[0]] = load_build

    def load_bytearray8(self) -> None:
        (length,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(length)))

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8

    def load_setitem(self) -> None:
        _check_keys(self.stack[-2:-1])
        super().load_setitem()

    dispatch[pickle.SETITEM[0]] = load_setitem

    def load_setitems(self) -> None:
        _check_keys(self.stack[::2])
        super().load_setitems()

    dispatch[pickle.SETITEMS[0]] = load_setitems

    def load_dict(self) -> None:
        _check_keys(self.stack[::2])
        super().load_dict()

    dispatch[pickle.DICT[0]] = load_dict

    def load_additems(self) -> None:
        _check_keys(self.stack)
        super().load_additems()

    dispatch[pickle.ADDITEMS[0]] = load_additems

    def load_frozenset(self) -> None:
        _check_keys(self.stack)
        super().load_frozenset()

    dispatch[pickle.FROZENSET[0]] = load_frozenset

    def find_class(self, module: str, name: str) -> Any:
        try:
            return ALLOWED_GLOBALS[(module, name)]
        except KeyError:
            raise ValueError(
                f"it holds {module}.{name}; only numpy arrays, numbers, strings and plain "
                "containers are allowed, because other objects may run code"
            ) from None


def _check_keys(keys: Iterable[Any]) -> None:
    """Refuse containers as keys: tuples of tuples take time without end to hash."""
    for key in keys:
        if not isinstance(key, str | bytes | int | float | complex | None):
            raise ValueError(f"it holds a {type(key).__name__} as a key or in a set")


class _Bounded:
    """A file that says so where more is read than it has, instead of making room for that."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._size = os.fstat(file.fileno()).st_size

    def read(self, count: int) -> bytes:
        content = self._file.read(min(count, self._size)) if count >= 0 else b""
        if len(content) != count:
            raise EOFError("it is cut off")
        return content

    def readline(self) -> bytes:
        return self._file.readline()


class _Dtype:
    """What a pickle says of a dtype: its code, then its byte order."""

    def __init__(self, code: Any, align: Any = False, copy: Any = False):
        if not isinstance(code, str) or not NUMERIC.fullmatch(code):
            raise ValueError(f"it holds an array of dtype {code!r}; only numbers are allowed")
        self.value = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        if order not in ("<", ">", "|", "="):
            raise ValueError(f"it holds a dtype of byte order {order!r}")
        self.value = self.value.newbyteorder(order)


class _ArrayClass:
    """Stands for `numpy.ndarray` where a pickle names it."""


class _Array:
    """What a pickle says of an array."""

    value: np.ndarray

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise ValueError("it holds an array of an unknown form")
        _, shape, dtype, is_fortran, data = state
        self.value = _from_bytes(data, dtype, shape, "F" if is_fortran else "C")


def _from_bytes(data: Any, dtype: Any, shape: Any, order: str = "C") -> np.ndarray:
    if isinstance(data, str):
        data = data.encode("latin1")  # what Python 2 wrote
    if not isinstance(dtype, _Dtype) or not isinstance(data, bytes | bytearray | memoryview):
        raise ValueError("it holds an array that is not of numbers")
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"it holds an array of shape {shape!r}")
    if math.prod(shape) * dtype.value.itemsize != len(data):
        raise ValueError(f"it holds an array of shape {shape} in {len(data)} bytes")
    return np.frombuffer(data, dtype.value).reshape(shape, order=order).copy(order=order)


def _reconstruct(array_class: Any, shape: Any, code: Any) -> _Array:
    if array_class is not _ArrayClass:
        raise ValueError("it holds an array of another class than numpy's")
    return _Array()


def _frombuffer(data: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    found = _Array()
    found.value = _from_bytes(bytes(data), dtype, shape, "F" if order == "F" else "C")
    return found


def _scalar(dtype: Any, data: Any) -> Any:
    return _from_bytes(data, dtype, ()).item()


def _latin1_bytes(text: str, encoding: str) -> bytes:
    """Protocol 2 has no bytes: it stores them as text and a call of this function."""
    if encoding != "latin1":
        raise ValueError(f"a pickle asks for the encoding {encoding!r}; only latin1 is allowed")
    return text.encode(encoding)


def safe_bytes(*arguments: Any) -> bytes:
    """`bytes`, but not by their number, which costs a file nothing."""
    if any(isinstance(argument, int) for argument in arguments):
        raise ValueError("it holds bytes that are given by their number")
    return bytes(*arguments)


def safe_bytearray(*arguments: Any) -> bytearray:
    """`bytearray`, but not by its length."""
    return bytearray(safe_bytes(*arguments))


def _set(items: Any = ()) -> set:
    _check_keys(items)
    return set(items)


def _frozenset(items: Any = ()) -> frozenset:
    return frozenset(_set(items))


def _ordered_dict() -> collections.OrderedDict:
    return collections.OrderedDict()  # its items follow


def _real(value: Any, done: dict[int, Any]) -> Any:
    """`value` with arrays and dtypes in place of their stand-ins; lists and dicts are changed.

    Args:
        done: what was made of each object, so that shared ones are looked at once.
    """
    if id(value) in done:
        return done[id(value)]
    if isinstance(value, _Array):
        if not hasattr(value, "value"):
            raise ValueError("it holds an array without content")
        return value.value
    if isinstance(value, _Dtype):
        return value.value
    if not isinstance(value, PLAIN_TYPES):
        raise ValueError(f"it holds a {type(value).__name__} that stands for nothing")
    done[id(value)] = value
    if isinstance(value, dict):
        for key in value:
            value[key] = _real(value[key], done)
    elif isinstance(value, list):
        value[:] = [_real(item, done) for item in value]
    elif isinstance(value, tuple):
        done[id(value)] = tuple(_real(item, done) for item in value)
    return done[id(value)]


ALLOWED_GLOBALS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _ArrayClass,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _latin1_bytes,
    ("collections", "OrderedDict"): _ordered_dict,
}
for _core in ("numpy.core", "numpy._core"):
    ALLOWED_GLOBALS[(f"{_core}.multiarray", "_reconstruct")] = _reconstruct
    ALLOWED_GLOBALS[(f"{_core}.multiarray", "scalar")] = _scalar
    ALLOWED_GLOBALS[(f"{_core}.numeric", "_frombuffer")] = _frombuffer
for _builtins in ("builtins", "__builtin__"):
    ALLOWED_GLOBALS[(_builtins, "set")] = _set
    ALLOWED_GLOBALS[(_builtins, "frozenset")] = _frozenset
    ALLOWED_GLOBALS[(_builtins, "complex")] = complex
    ALLOWED_GLOBALS[(_builtins, "bytes")] = safe_bytes
    ALLOWED_GLOBALS[(_builtins, "bytearray")] = safe_bytearray


def read_array_pickle(path: str) -> Any:
    """Content of a `.pkl` file of arrays, written by Python 2 or 3; ValueError for all else."""
    try:
        with open(path, "rb") as file:
            return ArrayUnpickler(_Bounded(file), encoding="latin1").load()
    except OSError:
        raise
    except (pickle.UnpicklingError, RecursionError, MemoryError, *DAMAGE) as error:
        raise ValueError(
            f"cannot read the pickle {path}: {error}. Download it or make it again"
        ) from error


# What damaged pickles make the unpickler raise.
DAMAGE = (ValueError, TypeError, EOFError, KeyError, IndexError, AttributeError, OverflowError)
DAMAGE += (struct.error, AssertionError, BufferError)
