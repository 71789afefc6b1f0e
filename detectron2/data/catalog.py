"""Two global tables by dataset name: functions that load datasets, and facts about them."""

import logging
import types
from collections import UserDict
from collections.abc import Callable
from typing import Any

from detectron2.utils.logger import log_first_n

__all__ = ["DatasetCatalog", "Metadata", "MetadataCatalog"]


class _DatasetCatalog(UserDict):
    """Functions that return datasets (lists of dicts), by name.

    The same function must return the same data in the same order each time.
    """

    def register(self, name: str, func: Callable[[], list[dict]]) -> None:
        """Make `get(name)` return `func()`. A name can be registered once."""
        assert callable(func), f"register() takes a function that loads '{name}', got {func!r}"
        assert name not in self, (
            f"Dataset '{name}' is already registered! Call DatasetCatalog.remove('{name}') first "
            "to replace it"
        )
        self[name] = func

    def get(self, name: str) -> list[dict]:
        """Load the dataset."""
        try:
            load = self[name]
        except KeyError as error:
            raise KeyError(
                f"Dataset '{name}' is not registered! Registered are: {', '.join(self)}. "
                "Register it, or give it in DATASETS as 'name=annotations.json:image_folder'"
            ) from error
        return load()

    def list(self) -> list[str]:
        """Names of all registered datasets."""
        return list(self.keys())

    def remove(self, name: str) -> None:
        """The same as `pop(name)`."""
        self.pop(name)

    def __str__(self) -> str:
        return f"DatasetCatalog(registered datasets: {', '.join(self.keys())})"

    __repr__ = __str__


class Metadata(types.SimpleNamespace):
    """Facts about one dataset, such as `thing_classes`, as attributes.

    An attribute can be set once; setting it again is fine only to an equal value, so that nobody
    changes what others already rely on.
    """

    name: str = "N/A"  # of the dataset; class attribute, so that repr and as_dict start empty

    _RENAMED = {
        "class_names": "thing_classes",
        "dataset_id_to_contiguous_id": "thing_dataset_id_to_contiguous_id",
        "stuff_class_names": "stuff_classes",
    }

    def __getattr__(self, key: str) -> Any:
        if key in self._RENAMED:
            _warn_renamed(key, self._RENAMED[key])
            return getattr(self, self._RENAMED[key])
        if not self.__dict__:
            raise AttributeError(
                f"Attribute '{key}' does not exist in the metadata of dataset '{self.name}': "
                "metadata is empty."
            )
        raise AttributeError(
            f"Attribute '{key}' does not exist in the metadata of dataset '{self.name}'. "
            f"Available keys are {list(self.__dict__)}"
        )

    def __setattr__(self, key: str, val: Any) -> None:
        if key in self._RENAMED:
            _warn_renamed(key, self._RENAMED[key])
            setattr(self, self._RENAMED[key], val)
            return
        if key in self.__dict__:
            old = self.__dict__[key]
            assert old == val, (
                f"Attribute '{key}' in the metadata of '{self.name}' cannot be set to a different "
                f"value!\n{old} != {val}"
            )
        else:
            super().__setattr__(key, val)

    def as_dict(self) -> dict[str, Any]:
        """A copy of all attributes as a dict."""
        return dict(self.__dict__)

    def set(self, **kwargs: Any) -> "Metadata":
        """Set several attributes; returns self."""
        for key, value in kwargs.items():
            setattr(self, key, value)
        return self

    def get(self, key: str, default: Any = None) -> Any:
        """The attribute, or `default` if it is not set."""
        try:
            return getattr(self, key)
        except AttributeError:
            return default


def _warn_renamed(old: str, new: str) -> None:
    message = f"Metadata '{old}' was renamed to '{new}'; use the new name"
    log_first_n(logging.WARNING, message, n=10, name=__name__, key="message")


class _MetadataCatalog(UserDict):
    """The `Metadata` of each dataset, by name."""

    def get(self, name: str) -> Metadata:
        """The metadata of `name`; empty, but remembered, if it was never asked for before."""
        assert len(name), "a dataset's name cannot be empty"
        if name not in self:
            self[name] = Metadata(name=name)
        return self[name]

    def list(self) -> list[str]:
        """Names of all datasets that have metadata."""
        return list(self.keys())

    def remove(self, name: str) -> None:
        """The same as `pop(name)`."""
        self.pop(name)

    def __str__(self) -> str:
        return f"MetadataCatalog(registered metadata: {', '.join(self.keys())})"

    __repr__ = __str__


DatasetCatalog = _DatasetCatalog()
MetadataCatalog = _MetadataCatalog()
