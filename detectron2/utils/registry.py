"""Name -> object tables for what a config names, and lookup of objects by dotted name."""

import pydoc
from typing import Any

from fvcore.common.registry import Registry

__all__ = ["Registry", "locate"]


def _convert_target_to_string(target: Any) -> str:
    """The shortest dotted name by which `locate` finds this class or function again."""
    modules = target.__module__.split(".")
    for depth in range(1, len(modules)):
        candidate = ".".join(modules[:depth]) + "." + target.__qualname__
        try:
            if locate(candidate) is target:
                return candidate
        except ImportError:
            continue
    return f"{target.__module__}.{target.__qualname__}"


def locate(name: str) -> Any:
    """The object with the dotted name `package.module.Outer.Inner`, imported where needed."""
    found = pydoc.locate(name)
    if found is None:
        raise ImportError(
            f"no object named {name!r}: expected an importable module followed by its attributes, "
            "as in 'package.module.Class'"
        )
    return found
