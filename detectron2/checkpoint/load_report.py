"""Outcome of a load: which tensors of the file and the model matched and which did not."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import nn


@dataclass(frozen=True)
class LoadReport:
    """Outcome of loading a state dict; `str()` formats it for people.

    mismatched: (name, shape in the file, shape in the model) of tensors that were not loaded.
    num_model_tensors: number of tensors in the model.
    loaded: tensors that came from the file. A tensor may be neither loaded nor missing: a frozen
        batch norm without running averages in the file uses mean 0 and variance 1.
    """

    missing: list[str]
    unexpected: list[str]
    mismatched: list[tuple[str, tuple[int, ...], tuple[int, ...]]]
    num_model_tensors: int
    loaded: list[str] = field(repr=False)

    @property
    def is_complete(self) -> bool:
        """Whether nothing is missing, unexpected or of another shape."""
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        lines = [f"{len(self.loaded)} of the model's {self.num_model_tensors} tensors were loaded."]
        misshapen = [name for name, _, _ in self.mismatched]
        if self.missing:
            lines.append("Missing in the file, so they keep their initial values:")
            lines += _indent(collapse_names(self.missing, [*self.loaded, *misshapen]))
        if self.unexpected:
            lines.append("In the file but not in the model, so they are not used:")
            lines += _indent(collapse_names(self.unexpected, [*self.loaded, *misshapen]))
        if self.mismatched:
            lines.append("Of another shape in the file, so they keep their initial values:")
            lines += _indent(
                f"{name}: {in_file} in the file, {in_model} in the model"
                for name, in_file, in_model in self.mismatched
            )
        return "\n".join(lines)


def _indent(lines: Iterable[str]) -> list[str]:
    return [f"    {line}" for line in lines]


def collapse_names(names: Iterable[str], others: Iterable[str]) -> list[str]:
    """Sorted names, with `module.* (n tensors)` for modules whose n names are all listed.

    Args:
        names: dotted names to list.
        others: names that are not listed; a module that has one of them is not collapsed.
    """
    names = sorted(names)
    partly_listed = {prefix for name in others for prefix in _parents(name)}
    count: Counter[str] = Counter()
    for name in names:
        whole = next((p for p in _parents(name) if p not in partly_listed), None)
        count[name if whole is None else f"{whole}.*"] += 1
    return [f"{name} ({n} tensors)" if name.endswith(".*") else name for name, n in count.items()]


def _parents(name: str) -> list[str]:
    """Modules that hold a tensor, outermost first: a.b.c -> a, a.b."""
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]


def without_loaded_aliases(missing: Iterable[str], model: nn.Module) -> list[str]:
    """`missing` without the names of shared tensors that were loaded by another name."""
    missing = list(missing)
    absent = set(missing)
    tensors = dict(model.named_parameters(remove_duplicate=False))
    tensors.update(model.named_buffers(remove_duplicate=False))
    loaded = {id(tensor) for name, tensor in tensors.items() if name not in absent}
    return [name for name in missing if id(tensors.get(name)) not in loaded]
