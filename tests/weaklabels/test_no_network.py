"""weaklabels works where no network library is installed."""

import subprocess
import sys
from pathlib import Path

import weaklabels

PROGRAM = """
import importlib, pkgutil, sys, weaklabels
sys.modules.update(dict.fromkeys(["torch", "torchvision", "detectron2", "adet", "wsis"]))
found = [m.name for m in pkgutil.walk_packages(weaklabels.__path__, "weaklabels.")]
for name in found:
    importlib.import_module(name)
print(len(found))
"""


def test_every_module_imports_without_torch_and_the_packages_above():
    """A module that is None in sys.modules cannot be imported."""
    root = Path(weaklabels.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == sum(1 for _ in (root / "weaklabels").rglob("*.py")) - 1
