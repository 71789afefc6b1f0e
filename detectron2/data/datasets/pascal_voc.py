"""Pascal VOC's detection data: lists of images, and one XML file of objects per image.

Boxes in the files are 1-based inclusive pixel indices. In datasets they are continuous coordinates
from 0, so only xmin and ymin change, by one.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException, ElementTree

from detectron2.data.catalog import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

__all__ = [
    "CLASS_NAMES",
    "VOCAnnotation",
    "VOCObject",
    "load_voc_instances",
    "read_image_set",
    "read_voc_annotation",
    "register_pascal_voc",
]

CLASS_NAMES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_ARCHIVES = {  # downloads with images and annotations, by the folder they unpack to
    "VOC2007": "VOCtrainval_06-Nov-2007.tar (test split: VOCtest_06-Nov-2007.tar)",
    "VOC2012": "VOCtrainval_11-May-2012.tar",
}


@dataclass(frozen=True)
class VOCObject:
    """One object of an image; `bbox` is xmin, ymin, xmax, ymax as in the file (from 1)."""

    name: str
    bbox: tuple[float, float, float, float]
    difficult: bool
    truncated: bool
    pose: str


@dataclass(frozen=True)
class VOCAnnotation:
    """What the XML file of one image says; `height` and `width` in pixels."""

    height: int
    width: int
    objects: tuple[VOCObject, ...]


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
    for image_id in read_image_set(os.path.join(dirname, "ImageSets", "Main", f"{split}.txt")):
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


def read_image_set(path: str) -> list[str]:
    """The image names in a list of `ImageSets`, one per line, without duplicates."""
    try:
        with PathManager.open(path, "r") as file:
            lines = [line.split() for line in file if line.strip()]
    except FileNotFoundError as error:
        raise FileNotFoundError(_missing(path, "list of images")) from error
    for words in lines:
        if len(words) != 1:
            raise ValueError(
                f"'{path}': expected one image name per line, got {' '.join(words)!r} (lists of "
                "single classes, such as cat_train.txt, are not splits)"
            )
    names = [words[0] for words in lines]
    if len(set(names)) < len(names):
        twice = next(name for number, name in enumerate(names) if name in names[:number])
        raise ValueError(f"'{path}': image {twice!r} occurs twice")
    return names


def read_voc_annotation(path: str) -> VOCAnnotation:
    """Read one file of `Annotations`; errors name the file and the object."""
    try:
        with PathManager.open(path, "rb") as file:
            root = ElementTree.parse(file).getroot()
    except FileNotFoundError as error:
        raise FileNotFoundError(_missing(path, "annotation file")) from error
    except (ParseError, DefusedXmlException) as error:
        raise ValueError(f"'{path}' is not a Pascal VOC annotation file: {error}") from error
    size = root.find("size")
    if size is None:
        raise ValueError(f"'{path}' has no <size> of the image")
    height, width = (_number(size, key, f"'{path}', <size>") for key in ("height", "width"))
    if not (height >= 1 and width >= 1):
        raise ValueError(f"'{path}': an image of {width:g} x {height:g} (width x height) pixels")
    objects = tuple(
        _read_object(element, f"'{path}', object {number}")
        for number, element in enumerate(root.findall("object"), start=1)
    )
    return VOCAnnotation(int(height), int(width), objects)


def _read_object(element: Element, where: str) -> VOCObject:
    name = (element.findtext("name") or "").strip()
    if not name:
        raise ValueError(f"{where} has no <name>")
    where = f"{where} ({name})"  # a part of an object has its own name and box, deeper down
    box = element.find("bndbox")
    if box is None:
        raise ValueError(f"{where} has no <bndbox>")
    xmin, ymin, xmax, ymax = (_number(box, corner, where) for corner in _CORNERS)
    if xmin > xmax or ymin > ymax:
        raise ValueError(
            f"{where} has the box {[xmin, ymin, xmax, ymax]}; expected xmin <= xmax, ymin <= ymax"
        )
    return VOCObject(
        name=name,
        bbox=(xmin, ymin, xmax, ymax),
        difficult=_flag(element, "difficult", where),
        truncated=_flag(element, "truncated", where),
        pose=(element.findtext("pose") or "Unspecified").strip(),
    )


def _number(element: Element, key: str, where: str) -> float:
    # VOC 2012 also has fractional coordinates.
    text = element.findtext(key)
    try:
        value = float(text) if text is not None else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{where}: <{key}> is {text!r}; expected a number")
    return value


def _flag(element: Element, key: str, where: str) -> bool:
    """Whether the flag is set; some releases omit flags that are not set."""
    text = (element.findtext(key) or "0").strip()
    if text not in ("0", "1"):
        raise ValueError(f"{where}: <{key}> is {text!r}; expected 0 or 1")
    return text == "1"


def _missing(path: str, what: str) -> str:
    folder = os.path.dirname(path)
    while os.path.basename(folder) in ("ImageSets", "Main", "Segmentation", "Annotations"):
        folder = os.path.dirname(folder)
    archive = _ARCHIVES.get(os.path.basename(folder), " or ".join(_ARCHIVES.values()))
    return (
        f"{what} '{path}' does not exist. Download {archive} from "
        f"http://host.robots.ox.ac.uk/pascal/VOC/ and unpack it so that '{folder}' has "
        "Annotations, ImageSets and JPEGImages. Builtin datasets are expected in the folder that "
        "the environment variable DETECTRON2_DATASETS names (default: ./datasets)"
    )


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
