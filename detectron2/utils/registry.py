"""Tables of the objects that a config names, and lookup of objects by dotted name."""

import pydoc
from typing import Any

from fvcore.common.registry import Registry

__all__ = ["Registry", "locate"]


def locate(name: str) -> Any:
    """The object with the dotted name `package.module.Outer.Inner`, imported where needed."""
    found = pydoc.locate(name)
    if found is None:
        raise ImportError(
            f"no object named {name!r}: expected an importable module followed by its attributes, "
            "as in 'package.module.Class'"
        )
    return found
