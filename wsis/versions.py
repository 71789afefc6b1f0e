"""Versions of the packages that results depend on."""

from functools import cache
from importlib import metadata

PACKAGES = ("pointwssis", "torch", "torchvision", "numpy")


@cache
def versions() -> dict[str, str]:
    """Version of each package by name."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # a checkout on PYTHONPATH
            found[name] = "not installed"
    return found
