"""Read Pascal VOC's files: lists of images, and one XML file of objects per image.

Boxes in the files are 1-based pixel indices, both ends inclusive.
"""

import math
import os
from dataclasses import dataclass
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException, ElementTree

from weaklabels.files import read_text
from weaklabels.masks import check_image_size

CLASS_NAMES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)
# What parsers of XML raise: for damage, entities, and encodings that are unknown or do not fit.
XML_ERRORS = (ParseError, DefusedXmlException, ValueError, LookupError, OverflowError)
MAX_DIGITS = 18  # of a name that stands for a number
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_ARCHIVES = {  # what holds the images and annotations, by the folder it unpacks to
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


def read_image_set(path: str) -> list[str]:
    """Names of the images in a list of `ImageSets`, one a line, each at most once."""
    if not os.path.isfile(path):
        raise FileNotFoundError(_missing(path, "list of images"))
    lines = [line.split() for line in read_text(path).splitlines() if line.strip()]
    for words in lines:
        if len(words) != 1:
            raise ValueError(
                f"'{path}': expected one image name a line, got {' '.join(words)!r} (the lists of "
                "single classes, such as cat_train.txt, are no splits)"
            )
    names = [words[0] for words in lines]
    if len(set(names)) < len(names):
        twice = next(name for number, name in enumerate(names) if name in names[:number])
        raise ValueError(f"'{path}': image {twice!r} occurs twice")
    return names


def voc_image_id(name: str) -> int:
    """The number that stands for an image in files that need one: the digits of its name."""
    digits = name.replace("_", "")
    if not digits.isdecimal() or len(digits) > MAX_DIGITS:
        raise ValueError(f"image {name!r}: expected a name of digits, such as 2007_000032")
    return int(digits)


def read_voc_annotation(path: str) -> VOCAnnotation:
    """Read one file of `Annotations`; errors name it, and the object in it."""
    try:
        with open(path, "rb") as file:
            root = ElementTree.parse(file).getroot()
    except FileNotFoundError as error:
        raise FileNotFoundError(_missing(path, "annotation file")) from error
    except XML_ERRORS as error:
        raise ValueError(f"'{path}' is not a Pascal VOC annotation file: {error}") from error
    size = root.find("size")
    if size is None:
        raise ValueError(f"'{path}' has no <size> of the image")
    height, width = (_number(size, key, f"'{path}', <size>") for key in ("height", "width"))
    try:
        check_image_size(int(height), int(width))
    except ValueError as error:
        raise ValueError(f"'{path}': {error}; correct it") from error
    objects = tuple(
        _read_object(element, f"'{path}', object {number}")
        for number, element in enumerate(root.findall("object"), start=1)
    )
    return VOCAnnotation(int(height), int(width), objects)


def _read_object(element: Element, where: str) -> VOCObject:
    name = (element.findtext("name") or "").strip()
    if not name:
        raise ValueError(f"{where} has no <name>")
    where = f"{where} ({name})"  # a part of an object has a name and a box of its own, deeper down
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
    # VOC 2012 has coordinates with decimals, too.
    text = element.findtext(key)
    try:
        value = float(text) if text is not None else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{where}: <{key}> is {text!r}; expected a number")
    return value


def _flag(element: Element, key: str, where: str) -> bool:
    """Whether the mark is set; objects without it, as some releases have, count as not marked."""
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
        "Annotations, ImageSets and JPEGImages. Builtin datasets are looked for below the folder "
        "in the environment variable DETECTRON2_DATASETS (default: ./datasets)"
    )
