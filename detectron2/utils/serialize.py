"""Pickle functions that plain pickle refuses: closures and lambdas."""

from collections.abc import Callable
from typing import Any

import cloudpickle

__all__ = ["PicklableWrapper"]


class PicklableWrapper:
    """A callable that behaves as the object it holds, and pickles it with cloudpickle."""

    def __init__(self, obj: Callable):
        while isinstance(obj, PicklableWrapper):
            obj = obj._obj
        self._obj = obj

    def __reduce__(self) -> tuple[Callable, tuple[bytes]]:
        return _rewrap, (cloudpickle.dumps(self._obj),)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._obj(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name == "_obj":  # not yet set while copying: do not look it up in itself
            raise AttributeError(name)
        return getattr(self._obj, name)


def _rewrap(data: bytes) -> PicklableWrapper:
    return PicklableWrapper(cloudpickle.loads(data))
