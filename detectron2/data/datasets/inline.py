"""Datasets given as `name=annotations.json:image_folder` in place of a name."""

import os
import re
from collections.abc import Callable, Iterable

from detectron2.data.catalog import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager

from .coco import register_coco_instances
from .tags import register_tags

__all__ = ["register_inline_datasets"]

_NAME = re.compile(r"[\w.-]+")
_FORM = "name=annotations.json:image_folder"


def register_inline_datasets(names: Iterable[str], *, tags: bool = False) -> list[str]:
    """Register the COCO-format datasets among `names` that are given inline; returns plain names.

    `mydata=ann.json:images/` registers "mydata". The same dataset may be given again; another one
    under a registered name is a ValueError.

    Args:
        tags: the files are tag files, which say of an image what it shows and not where.
    """
    register = register_tags if tags else register_coco_instances
    return [_register(name, register) if "=" in name else name for name in names]


def _register(text: str, register: Callable[[str, dict, str, str], None]) -> str:
    name, json_file, image_root = _parse(text)
    if name in DatasetCatalog:
        known = MetadataCatalog.get(name)
        known_files = (known.get("json_file"), known.get("image_root"))
        if known_files != (json_file, image_root):
            raise ValueError(
                f"dataset '{text}': the name '{name}' is taken by a dataset with (annotations, "
                f"image folder) = {known_files}; choose another name"
            )
        return name
    register(name, {}, json_file, image_root)
    return name


def _parse(text: str) -> tuple[str, str, str]:
    """Name, annotation file and image folder of `name=annotations.json:image_folder`."""
    name, _, paths = text.partition("=")
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"dataset '{text}': the name '{name}' before '=' is not valid; use letters, digits, "
            f"'_', '-' and '.', as in {_FORM}"
        )
    # after '.json', since a path may contain a colon (C:\, s3://)
    stem, separator, image_root = paths.partition(".json:")
    if not separator:
        raise ValueError(
            f"dataset '{text}': expected a file that ends in .json, then ':', then the image "
            f"folder, after '{name}='; got '{paths}'. The form is {_FORM}"
        )
    json_file = stem + ".json"
    if not PathManager.isfile(json_file):
        raise FileNotFoundError(f"dataset '{text}': the annotation file '{json_file}' is missing")
    if not PathManager.isdir(image_root):
        raise FileNotFoundError(
            f"dataset '{text}': the image folder '{image_root}' after '.json:' does not exist"
        )
    return name, json_file, os.path.join(image_root, "")
