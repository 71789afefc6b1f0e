"""Who may import whom (DESIGN section 2), read from the import statements of every module."""

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE_ROOTS = {
    "detectron2": ROOT,
    "adet": ROOT / "AdelaiDet",
    "maskrefinenet": ROOT,
    "weaksam": ROOT,
}

# The sub-packages of detectron2 that each sub-package may import besides itself.
ALLOWED = {
    "utils": set(),
    "config": {"utils"},
    "structures": {"utils", "layers.shape_spec"},
    "layers": {"utils", "structures", "config"},
    "modeling": {"utils", "config", "structures", "layers"},
    "data": {"utils", "config", "structures"},
    "solver": {"utils", "config"},
    "checkpoint": {"utils", "config"},
    "model_zoo": {"utils", "config", "checkpoint", "modeling"},
    "evaluation": {"utils", "config", "structures", "layers", "data"},
    "engine": {
        *("utils", "config", "structures", "layers", "modeling", "data"),
        *("solver", "checkpoint", "evaluation", "model_zoo"),
    },
}
# detectron2.utils is the bottom of the house but for two modules that draw and test containers.
UTILS_EXCEPTIONS = {"detectron2.utils.visualizer", "detectron2.utils.testing"}
# Detectron2 has test-time augmentation here; it needs the transforms, which need no model.
MODELING_EXCEPTIONS = {"detectron2.modeling.test_time_augmentation"}
EXCEPTIONS = UTILS_EXCEPTIONS | MODELING_EXCEPTIONS


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def all_modules() -> list[tuple[str, Path]]:
    return [
        (module_name(path, root), path)
        for package, root in PACKAGE_ROOTS.items()
        for path in sorted((root / package).rglob("*.py"))
    ]


def imported_names(module: str, path: Path) -> set[str]:
    """Absolute dotted names of all that a module imports, function-level imports included."""
    names = set()
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base]) if base else ".".join(parents)
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


MODULES = all_modules()


@pytest.mark.parametrize("module,path", MODULES, ids=[name for name, _ in MODULES])
def test_imports_follow_the_layers(module: str, path: Path):
    package = module.split(".")[0]
    names = imported_names(module, path)
    internal = {name for name in names if name.split(".")[0] in (*PACKAGE_ROOTS, "tools", "tests")}
    if package == "maskrefinenet":
        assert {name.split(".")[0] for name in internal} <= {"maskrefinenet"}
    elif package in ("adet", "weaksam"):
        assert {name.split(".")[0] for name in internal} <= {package, "detectron2"}
    elif module.count(".") >= 1 and module not in EXCEPTIONS:
        own = module.split(".")[1]
        for name in internal:
            top, _, rest = name.partition(".")
            assert top == "detectron2", f"{module} imports {name}"
            target = rest.split(".")[0]
            if target not in ALLOWED:  # detectron2.__version__ and the like
                continue
            allowed = target == own or target in ALLOWED[own]
            by_module = any(rest.startswith(entry) for entry in ALLOWED[own] if "." in entry)
            assert allowed or by_module, f"{module} imports {name}"


@pytest.mark.parametrize("module", [name for name, _ in MODULES if not name.endswith("__main__")])
def test_every_module_imports_by_itself(module: str):
    importlib.import_module(module)
