"""A table of per-instance fields of one image."""

import itertools
from typing import Any, NoReturn

import torch
from torch import Tensor


class Instances:
    """The instances of one image: named fields that all have one entry per instance.

    A field is anything with `len` and indexing (tensors, lists, `Boxes`, masks). Fields are
    attributes: `instances.gt_boxes = Boxes(...)` adds one and checks its length,
    `instances.gt_boxes` reads it. Indexing and `cat` act on all fields at once.
    """

    def __init__(self, image_size: tuple[int, int], **kwargs: Any):
        """image_size: (height, width) in pixels of the image that the fields refer to."""
        self._image_size = image_size
        self._fields: dict[str, Any] = {}
        for name, value in kwargs.items():
            self.set(name, value)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self._image_size

    def __setattr__(self, name: str, val: Any) -> None:
        if name.startswith("_"):
            super().__setattr__(name, val)
        else:
            self.set(name, val)

    def __getattr__(self, name: str) -> Any:
        # `_fields` itself is missing while an object is being copied or unpickled.
        if name == "_fields" or name not in self._fields:
            raise AttributeError(f"Instances has no field {name!r}; set it before you read it")
        return self._fields[name]

    def set(self, name: str, value: Any) -> None:
        """Add or replace a field; its length must be that of the fields already there."""
        if self._fields and len(value) != len(self):
            raise ValueError(f"field '{name}' has {len(value)} entries, Instances has {len(self)}")
        self._fields[name] = value

    def has(self, name: str) -> bool:
        return name in self._fields

    def remove(self, name: str) -> None:
        del self._fields[name]

    def get(self, name: str) -> Any:
        """The field of this name; KeyError if there is none."""
        return self._fields[name]

    def get_fields(self) -> dict[str, Any]:
        """The fields by name: the table itself, not a copy."""
        return self._fields

    def to(self, *args: Any, **kwargs: Any) -> "Instances":
        """New Instances with `to(...)` applied to each field that has it."""
        moved = Instances(self._image_size)
        for name, value in self._fields.items():
            moved.set(name, value.to(*args, **kwargs) if hasattr(value, "to") else value)
        return moved

    def __getitem__(self, item: int | slice | Tensor) -> "Instances":
        """New Instances with every field indexed; an int keeps one instance."""
        if isinstance(item, int):
            if not -len(self) <= item < len(self):
                raise IndexError(f"index {item} is out of range for {len(self)} instances")
            item = slice(item, None, len(self))  # one entry, for negative numbers too
        chosen = Instances(self._image_size)
        for name, value in self._fields.items():
            chosen.set(name, value[item])
        return chosen

    def __len__(self) -> int:
        for value in self._fields.values():
            return len(value)
        # Upstream parity: without a field the length is unknown, not 0.
        raise NotImplementedError("Instances without any field has no length")

    def __iter__(self) -> NoReturn:
        # Upstream parity: without this, Python would iterate through __getitem__.
        raise NotImplementedError("Instances is not iterable; index it with 0 .. len - 1")

    @staticmethod
    def cat(instance_lists: list["Instances"]) -> "Instances":
        """The instances of a list as one object; the element itself if the list has only one.

        All need the same image size and fields: tensors, lists, or types with a `cat` method.
        """
        if len(instance_lists) == 0:
            raise ValueError("Instances.cat needs at least one Instances")
        for element in instance_lists:
            if not isinstance(element, Instances):
                raise ValueError(f"Instances.cat takes Instances, got {type(element).__name__}")
        first = instance_lists[0]
        if len(instance_lists) == 1:
            return first
        if not isinstance(first.image_size, Tensor):  # tensors, while tracing, do not compare
            sizes = {tuple(element.image_size) for element in instance_lists}
            if len(sizes) > 1:
                raise ValueError(f"Instances.cat needs one image size, got {sorted(sizes)}")
        joined = Instances(first.image_size)
        for name, value in first.get_fields().items():
            joined.set(name, _join(name, value, [element.get(name) for element in instance_lists]))
        return joined

    def __repr__(self) -> str:
        count = len(self) if self._fields else 0
        height, width = self._image_size
        fields = ", ".join(f"{name}: {value}" for name, value in self._fields.items())
        return (
            f"Instances(num_instances={count}, image_height={height}, "
            f"image_width={width}, fields=[{fields}])"
        )


def _join(name: str, first: Any, values: list[Any]) -> Any:
    """Concatenate the values of one field; `first`, the first of them, decides how."""
    if isinstance(first, Tensor):
        return torch.cat(values, dim=0)
    if isinstance(first, list):
        return list(itertools.chain.from_iterable(values))
    if hasattr(type(first), "cat"):
        return type(first).cat(values)
    raise ValueError(
        f"cannot concatenate field '{name}' of type {type(first).__name__}: "
        "use a tensor, a list, or a type with a `cat` method"
    )
