"""COCO-format and Pascal VOC datasets; importing this registers the builtin ones."""

from . import builtin
from .coco import (
    convert_to_coco_dict,
    convert_to_coco_json,
    load_coco_json,
    register_coco_instances,
)
from .inline import register_inline_datasets
from .pascal_voc import load_voc_instances, register_pascal_voc

__all__ = [
    "builtin",
    "convert_to_coco_dict",
    "convert_to_coco_json",
    "load_coco_json",
    "load_voc_instances",
    "register_coco_instances",
    "register_inline_datasets",
    "register_pascal_voc",
]
