"""Pascal VOC's detection data: lists of images, and one XML file of objects per image.

Boxes in the files are 1-based inclusive pixel indices. In datasets they are continuous coordinates
from 0, so only xmin and ymin change, by one.
"""

import os
from collections.abc import Sequence
from typing import Any

from detectron2.data.catalog import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager
from weaklabels.voc import (
    CLASS_NAMES,
    VOCAnnotation,
    VOCObject,
    read_image_set,
    read_voc_annotation,
)

__all__ = [
    "CLASS_NAMES",
    "VOCAnnotation",
    "VOCObject",
    "load_voc_instances",
    "read_image_set",
    "read_voc_annotation",
    "register_pascal_voc",
]


def load_voc_instances(
    dirname: str, split: str, class_names: list[str] | tuple[str, ...]
) -> list[dict[str, Any]]:
    """Load one split of Pascal VOC as dicts in Detectron2's standard dataset format.

    All objects are loaded, also difficult ones. `image_id` is VOC's name of the image, such as
    "000005"; images are in the order of the split's list.

    Args:
        dirname: folder that has `Annotations`, `ImageSets` and `JPEGImages`.
        split: a list in `ImageSets/Main`, such as "trainval".
        class_names: the classes in the order of their ids; others are an error.
    """
    names = list(class_names)
    dataset_dicts = []
    annotation_folder = PathManager.get_local_path(os.path.join(dirname, "Annotations/"))
    image_set = os.path.join(dirname, "ImageSets", "Main", f"{split}.txt")
    for image_id in read_image_set(PathManager.get_local_path(image_set)):
        path = os.path.join(annotation_folder, f"{image_id}.xml")
        image = read_voc_annotation(path)
        dataset_dicts.append(
            {
                "file_name": os.path.join(dirname, "JPEGImages", f"{image_id}.jpg"),
                "image_id": image_id,
                "height": image.height,
                "width": image.width,
                "annotations": [
                    _instance(object_, names, f"'{path}', object {number}")
                    for number, object_ in enumerate(image.objects, start=1)
                ],
            }
        )
    return dataset_dicts


def _instance(object_: VOCObject, class_names: list[str], where: str) -> dict[str, Any]:
    if object_.name not in class_names:
        raise ValueError(
            f"{where}: {object_.name!r} is not among the classes of the dataset: "
            f"{', '.join(class_names)}"
        )
    xmin, ymin, xmax, ymax = object_.bbox
    return {
        "category_id": class_names.index(object_.name),
        "bbox": [xmin - 1.0, ymin - 1.0, xmax, ymax],
        "bbox_mode": BoxMode.XYXY_ABS,
    }


def register_pascal_voc(
    name: str,
    dirname: str,
    split: str,
    year: int,
    class_names: Sequence[str] = CLASS_NAMES,
) -> None:
    """Register one split of Pascal VOC; its files are read on first use.

    Args:
        dirname: folder that has `Annotations`, `ImageSets` and `JPEGImages`.
        split: a list in `ImageSets/Main`, such as "trainval".
        year: 2007 or 2012, which decides the rule of average precision.
    """
    DatasetCatalog.register(name, lambda: load_voc_instances(dirname, split, class_names))
    MetadataCatalog.get(name).set(
        thing_classes=list(class_names), dirname=dirname, year=year, split=split
    )
