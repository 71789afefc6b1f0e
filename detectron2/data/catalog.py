"""Two global tables by dataset name: functions that load datasets, and metadata."""

import logging
import types
from collections import UserDict
from collections.abc import Callable
from typing import Any

from detectron2.utils.logger import log_first_n

__all__ = ["DatasetCatalog", "Metadata", "MetadataCatalog"]


class _Catalog(UserDict):
    def list(self) -> list[str]:
        """The names in the table."""
        return list(self)

    def remove(self, name: str) -> None:
        """The same as `pop(name)`."""
        self.pop(name)

    def __repr__(self) -> str:
        return f"{type(self).__name__.strip('_')}({', '.join(self)})"

    __str__ = __repr__


class _DatasetCatalog(_Catalog):
    """Functions that return datasets (lists of dicts), by name.

    A function must return the same data in the same order each time.
    """

    def register(self, name: str, func: Callable[[], list[dict]]) -> None:
        """Make `get(name)` return `func()`. A name can be registered once."""
        assert callable(func), f"register() takes a function that loads '{name}', got {func!r}"
        assert name not in self, (
            f"dataset '{name}' is already registered; call DatasetCatalog.remove('{name}') first"
        )
        self[name] = func

    def get(self, name: str) -> list[dict]:
        """Load the dataset."""
        if name not in self:
            raise KeyError(
                f"dataset '{name}' is not registered; registered are {', '.join(self)}. Register "
                "it, or give it in DATASETS as 'name=annotations.json:image_folder'"
            )
        return self[name]()


class Metadata(types.SimpleNamespace):
    """Facts about one dataset, such as `thing_classes`, as attributes.

    An attribute keeps its first value: setting it again is an error unless the values are equal.
    """

    name: str = "N/A"  # of the dataset; a class attribute, so that repr and as_dict start empty

    _RENAMED = {
        "class_names": "thing_classes",
        "dataset_id_to_contiguous_id": "thing_dataset_id_to_contiguous_id",
        "stuff_class_names": "stuff_classes",
    }

    def __getattr__(self, key: str) -> Any:
        if key in self._RENAMED:
            return getattr(self, _current_name(key, self._RENAMED[key]))
        known = list(vars(self)) or "nothing, the metadata is empty"
        raise AttributeError(f"no {key!r} in the metadata of dataset {self.name!r}; it has {known}")

    def __setattr__(self, key: str, val: Any) -> None:
        if key in self._RENAMED:
            key = _current_name(key, self._RENAMED[key])
        known = vars(self).setdefault(key, val)
        assert known == val, (
            f"metadata {key!r} of dataset {self.name!r} is {known!r} and cannot be set to the "
            f"different value {val!r}"
        )

    def as_dict(self) -> dict[str, Any]:
        """A copy of all attributes as a dict."""
        return dict(vars(self))

    def set(self, **kwargs: Any) -> "Metadata":
        """Set several attributes; returns self."""
        for key, value in kwargs.items():
            setattr(self, key, value)
        return self

    def get(self, key: str, default: Any = None) -> Any:
        """The attribute, or `default` if it is not set."""
        return getattr(self, key, default)


def _current_name(old: str, new: str) -> str:
    message = f"Metadata '{old}' was renamed to '{new}'; use the new name"
    log_first_n(logging.WARNING, message, n=10, name=__name__, key="message")
    return new


class _MetadataCatalog(_Catalog):
    """The `Metadata` of each dataset, by name."""

    def get(self, name: str) -> Metadata:
        """The metadata of `name`; made empty at the first call."""
        assert name, "a dataset's name cannot be empty"
        return self.setdefault(name, Metadata(name=name))


DatasetCatalog = _DatasetCatalog()
MetadataCatalog = _MetadataCatalog()
