"""A detector's boxes on the images of a tag file: read, and checked against it.

Two forms are read: records (`.jsonl`, one image a line, `instances` of `category_id`, `score` and
`bbox`) and COCO's result list (`.json`). Boxes are [x, y, width, height], categories are ids of
the tag file.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from weaklabels.coco import CocoFile
from weaklabels.files import missing_keys, read_json
from weaklabels.masks import is_finite_number
from weaklabels.tags import Tags

DETECTION_KEYS = ("category_id", "score", "bbox")
# Pixels that a box may reach over its image's edge: inclusive boxes whose width counts the last
# pixel again (SPEC_WEAKSAM 1.3) do by one. It is cut off.
EDGE = 1.0 + 1e-3

Located = tuple[str, int, dict[str, Any]]  # place for messages, image id, detection


@dataclass(frozen=True)
class Detections:
    """D detections, in the order of their file.

    images: (D,) int64, place in the tags' images.  classes: (D,) int64, place in the categories.
    boxes: (D, 4) float64 x, y, width, height in pixels, inside the image.
    scores: (D,) float64, at least 0.
    """

    images: np.ndarray
    classes: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray

    def __post_init__(self) -> None:
        shapes = [column.shape for column in (self.images, self.classes, self.boxes, self.scores)]
        count = len(self.images)
        if shapes != [(count,), (count,), (count, 4), (count,)]:
            raise ValueError(f"detections of shapes {shapes}; expected (D,), (D,), (D, 4), (D,)")

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows: np.ndarray) -> "Detections":
        """Those of some rows, in their order."""
        return Detections(
            self.images[rows], self.classes[rows], self.boxes[rows], self.scores[rows]
        )


def read_detections(path: str | Path, tags: Tags) -> Detections:
    """The detections of a file.

    Raises:
        FileNotFoundError, ValueError: naming the file and the record; there is no detection, or one
            is of an image or a class that the tags lack, lies outside its image, or is not finite.
    """
    path = Path(path)
    return _collect(path, _entries(path), tags)


def read_chosen(path: str | Path, tags: Tags) -> Detections:
    """The boxes of a COCO file with scores, as `wsis pseudo-boxes` writes it, as detections.

    Raises:
        FileNotFoundError, ValueError: as `read_detections`.
    """
    entries = (
        (f"{path}: annotation id {entry['id']}", entry["image_id"], entry)
        for entry in CocoFile(path).annotations()
    )
    return _collect(Path(path), entries, tags)


def _collect(path: Path, entries: Iterable[Located], tags: Tags) -> Detections:
    place = {image.id: index for index, image in enumerate(tags.images)}
    index_of = tags.index_of
    images, categories, boxes, scores = [], [], [], []
    for where, image_id, entry in entries:
        if image_id not in place:
            raise ValueError(
                f"{where}: image_id {image_id!r} is not among the {len(place)} images of "
                f"{tags.file or 'the tags'}: give the tags of the images that were detected on"
            )
        if missing := missing_keys(entry, DETECTION_KEYS):
            raise ValueError(f"{where}: the detection lacks {missing}; add it")
        category = entry["category_id"]
        if type(category) is not int or category not in index_of:
            raise ValueError(
                f"{where}: category_id {category!r} is not among the categories of "
                f"{tags.file or 'the tags'}: use tags of the classes that the detector knows"
            )
        images.append(place[image_id])
        image = tags.images[images[-1]]
        boxes.append(box_in_image(where, entry["bbox"], image.width, image.height))
        scores.append(_score(where, entry["score"]))
        categories.append(index_of[category])
    if not images:
        raise ValueError(f"{path}: no detection in it; run the detector on the images of the tags")
    return Detections(
        np.array(images, np.int64),
        np.array(categories, np.int64),
        np.array(boxes, np.float64),
        np.array(scores, np.float64),
    )


def _entries(path: Path) -> Iterator[Located]:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; expected detections, as records (.jsonl) or COCO results"
        )
    yield from _of_records(path) if path.suffix == ".jsonl" else _of_results(path)


def _of_results(path: Path) -> Iterator[Located]:
    content = read_json(path)
    if not isinstance(content, list):
        raise ValueError(f"{path}: no list of COCO results; is it another file?")
    for number, entry in enumerate(content):
        where = f"{path}: result {number}"
        if missing := missing_keys(entry, ("image_id",)):
            raise ValueError(f"{where} lacks {missing}: correct it, or give COCO results")
        yield where, _image_id(where, entry["image_id"]), entry


def _of_records(path: Path) -> Iterator[Located]:
    seen: set[int] = set()
    with open(path, "rb") as handle:
        for number, line in enumerate(handle, 1):
            where = f"{path}:{number}"
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                hint = "" if line.endswith(b"\n") else "; was the run that writes it cut off?"
                raise ValueError(f"{where}: not a json record ({error}){hint}") from error
            if missing := missing_keys(record, ("image_id", "instances")):
                raise ValueError(f"{where}: the record lacks {missing}; add it")
            image_id = _image_id(where, record["image_id"])
            if image_id in seen:
                raise ValueError(f"{where}: image {image_id} has a record already; one per image")
            seen.add(image_id)
            yield from _of_instances(where, image_id, record["instances"])


def _of_instances(where: str, image_id: int, instances: Any) -> Iterable[Located]:
    if not isinstance(instances, list):
        raise ValueError(f"{where}: instances are no list")
    for index, entry in enumerate(instances):
        yield f"{where}: instance {index}", image_id, entry


def _image_id(where: str, value: Any) -> int:
    if type(value) is not int:
        raise ValueError(f"{where}: image_id {value!r} is no whole number; use the tags' image ids")
    return value


def _score(where: str, value: Any) -> float:
    if not is_finite_number(value) or value < 0:
        raise ValueError(f"{where}: score {value!r} is no number of at least 0; correct it")
    return float(value)


def box_in_image(
    where: str, box: Any, width: int, height: int
) -> tuple[float, float, float, float]:
    """A box x, y, width, height cut at the image's edges.

    Raises:
        ValueError: beginning with `where`; it is no box, or reaches farther outside than EDGE.
    """
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_finite_number, box)):
        raise ValueError(
            f"{where}: bbox {box!r} is not x, y, width, height in finite numbers; correct it"
        )
    x, y, w, h = box
    if w <= 0 or h <= 0:
        raise ValueError(f"{where}: bbox {box} has no area; width and height must be above 0")
    (x, w), (y, h) = _inside(x, w, width), _inside(y, h, height)
    if w <= 0 or h <= 0:
        raise ValueError(
            f"{where}: bbox {box} reaches outside its image of {width} x {height} (width x "
            "height): boxes must be x, y, width, height in pixels of the original image"
        )
    return x, y, w, h


def _inside(low: float, length: float, size: int) -> tuple[float, float]:
    """Start and length of the part from 0 to `size`; length 0 where it reaches beyond EDGE."""
    high = low + length
    if 0 <= low and high <= size:
        return float(low), float(length)
    if low < -EDGE or high > size + EDGE:
        return float(low), 0.0
    start = max(float(low), 0.0)
    return start, min(float(high), float(size)) - start
