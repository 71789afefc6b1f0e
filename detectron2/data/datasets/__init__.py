"""COCO-format datasets and the builtin ones, which importing this package registers."""

from . import builtin
from .coco import (
    convert_to_coco_dict,
    convert_to_coco_json,
    load_coco_json,
    register_coco_instances,
)
from .inline import register_inline_datasets

__all__ = [
    "builtin",
    "convert_to_coco_dict",
    "convert_to_coco_json",
    "load_coco_json",
    "register_coco_instances",
    "register_inline_datasets",
]
