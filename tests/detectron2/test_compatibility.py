"""COMPATIBILITY.md says which public names of Detectron2 v0.6 are held: try every one."""

import importlib
import re
from pathlib import Path

import pytest

import detectron2

TEXT = Path(detectron2.__file__).with_name("COMPATIBILITY.md").read_text(encoding="utf-8")
SECTIONS = re.split(r"^## `(.+)`$", TEXT, flags=re.MULTILINE)[1:]


def names(label: str) -> list[tuple[str, str]]:
    """(module, name) of every name in the paragraphs that start with a label."""
    found = []
    for module, body in zip(SECTIONS[::2], SECTIONS[1::2], strict=True):
        for paragraph in body.split("\n\n"):
            if paragraph.strip().startswith(f"{label}:"):
                found += [(module, name) for name in re.findall(r"`(\w+)`", paragraph)]
    return found


def can_import(module: str, name: str) -> bool:
    """Whether `from module import name` works: `name` is an attribute or a submodule."""
    if hasattr(importlib.import_module(module), name):
        return True
    try:
        importlib.import_module(f"{module}.{name}")
    except ImportError:
        return False
    return True


HELD, LEFT_OUT = names("Held"), names("Left out")


def test_the_file_lists_names_of_both_kinds():
    assert len(HELD) > 200 and len(LEFT_OUT) > 40
    assert len({*HELD, *LEFT_OUT}) == len(HELD) + len(LEFT_OUT)


@pytest.mark.parametrize("module, name", HELD)
def test_held_names_import(module: str, name: str):
    assert can_import(module, name)


@pytest.mark.parametrize("module, name", LEFT_OUT)
def test_left_out_names_do_not(module: str, name: str):
    assert not can_import(module, name)
