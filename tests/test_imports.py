"""Who may import whom, read from the import statements of every module.

The floors, from the ground up (a package imports from lower floors only):

    weaklabels <- detectron2 <- adet, weaksam <- wsis <- tools, scripts, tests
    weaklabels <- maskrefinenet <- wsis

Packages that do not exist yet are skipped. That nothing imports `tools` is tested for the packages
only, because tests still start programs by importing them.
"""

import ast
import importlib
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE_ROOTS = {
    "weaklabels": ROOT,
    "detectron2": ROOT,
    "adet": ROOT / "AdelaiDet",
    "weaksam": ROOT,
    "maskrefinenet": ROOT,
    "wsis": ROOT,
}
# The packages that each package may import besides itself.
FLOORS = {
    "weaklabels": set(),
    "detectron2": {"weaklabels"},
    "adet": {"weaklabels", "detectron2"},
    "weaksam": {"weaklabels", "detectron2"},
    "maskrefinenet": {"weaklabels"},
    "wsis": {"weaklabels", "detectron2", "adet", "weaksam", "maskrefinenet"},
}
PROGRAMS = {"tools", "scripts", "tests"}

# The parts of detectron2 that each part may import besides itself. Two parts of `data` work on
# pixels only and lie below `modeling`: the image reader and the transforms. They import nothing of
# `data`, and no network imports anything else of it.
PIXELS = {"data.image_utils", "data.transforms"}
GROUND = {"utils", "config", "structures"}
NETWORKS = GROUND | {"layers"} | PIXELS
DETECTRON2 = {
    "utils": {"structures"},  # the visualizer draws containers
    "config": {"utils"},
    "structures": {"utils"},
    "layers": GROUND,
    "data.image_utils": {"utils"},
    "data.transforms": {"utils", "structures"},
    "data": GROUND | PIXELS,
    "modeling": NETWORKS,
    "solver": {"utils", "config"},
    "checkpoint": {"utils", "config"},
    "model_zoo": {"utils", "config", "checkpoint", "modeling"},
    "evaluation": NETWORKS | {"data"},
    "engine": NETWORKS | {"data", "modeling", "solver", "checkpoint", "model_zoo", "evaluation"},
}
# Parts of wsis above its ground floor, which holds pseudo_labels, refine and all other modules.
WSIS_FLOORS = {"runner": 1, "recipes": 2, "benchmarks": 3, "gpu_check": 3, "cli": 4, "__main__": 4}


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    module_name(path, root): path
    for package, root in PACKAGE_ROOTS.items()
    for path in sorted((root / package).rglob("*.py"))
}


def imported_names(module: str) -> set[str]:
    """Absolute dotted names of all that a module imports, function-level imports included."""
    names = set()
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base]) if base else ".".join(parents)
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


def imported_modules(module: str) -> set[str]:
    """Modules of this repository's packages that a module names in its imports."""
    found = set()
    for name in imported_names(module):
        while name and name not in MODULES:
            name = name.rpartition(".")[0]
        found |= {name} - {"", module}
    return found


def part_of(module: str) -> str:
    """The part of its package that a module belongs to; "" for the package itself."""
    _, _, rest = module.partition(".")
    pixels = [part for part in PIXELS if f"{rest}.".startswith(f"{part}.")]
    return pixels[0] if module.startswith("detectron2.") and pixels else rest.partition(".")[0]


def test_floors_follow_from_those_below():
    """A package that may import another may import all that the other may."""
    for allowed in FLOORS.values():
        assert all(FLOORS[below] <= allowed for below in allowed)


@pytest.mark.parametrize("module", MODULES)
def test_packages_import_lower_floors_only(module: str):
    package = module.partition(".")[0]
    tops = {name.partition(".")[0] for name in imported_names(module)}
    assert tops & (FLOORS.keys() | PROGRAMS) <= FLOORS[package] | {package}


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("detectron2.")])
def test_parts_of_detectron2_import_lower_parts_only(module: str):
    own = part_of(module)
    parts = {part_of(m) for m in imported_modules(module) if m.startswith("detectron2.")}
    assert parts <= DETECTRON2[own] | {own}


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("wsis.")])
def test_parts_of_wsis_import_lower_parts_only(module: str):
    own = WSIS_FLOORS.get(part_of(module), 0)
    above = {m for m in imported_modules(module) if m.startswith("wsis.")}
    assert not {m for m in above if WSIS_FLOORS.get(part_of(m), 0) > own}


@pytest.mark.parametrize("package", PACKAGE_ROOTS)
def test_files_import_each_other_in_no_circle(package: str):
    own = [module for module in MODULES if module.partition(".")[0] == package]
    if not own:
        pytest.skip(f"there is no package {package} yet")
    graph = {module: imported_modules(module) for module in own}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import circle: {' <- '.join(error.args[1])}")


@pytest.mark.parametrize("module", [name for name in MODULES if not name.endswith("__main__")])
def test_every_module_imports_by_itself(module: str):
    importlib.import_module(module)
