"""How many pseudo boxes are right, and how many objects have one: precision, recall, F1.

A box is right where it is paired with a true box of its image and class: by falling score, each
with the free true box of the largest IoU, if that reaches the threshold. A box that overlaps only a
difficult object or a crowd that much counts neither way, and those count as no object.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.ops import box_iou

from weaklabels.coco import checked_categories
from weaklabels.files import missing_keys, objects, read_json
from weaklabels.masks import is_finite_number
from weaklabels.tags import Tags
from weaksam.detections import Detections

IOU = 0.5
EXACT = 1e-9  # an IoU that equals the threshold but for rounding reaches it
PROTOCOL = (
    "greedy one-to-one matching by falling score within image and class, IoU >= {iou:g} of "
    "half-open boxes; difficult objects and crowds count neither as hit nor as miss"
)


@dataclass(frozen=True)
class BoxQuality:
    """boxes, objects, right: counts.  ignored: boxes on difficult objects or crowds alone.

    precision: right / (boxes - ignored).  recall: right / objects.  None: there is nothing.
    """

    protocol: str
    boxes_per_image: float
    boxes: int
    ignored: int
    objects: int
    right: int
    precision: float | None
    recall: float | None
    f1: float | None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class TrueBoxes:
    """boxes: (n, 4) float64 x, y, width, height.  counts: (n,) bool, False: difficult or crowd."""

    boxes: np.ndarray
    counts: np.ndarray


def read_true_boxes(path: str | Path, tags: Tags) -> dict[tuple[int, int], TrueBoxes]:
    """True boxes of a COCO-form file by place of image and of class in the tags.

    Images of the file that the tags do not have are left out; classes are found by their names.
    """
    content = read_json(path)
    for name in ("images", "annotations", "categories"):
        if missing_keys(content, (name,)):
            raise ValueError(f"{path}: no list {name!r}; the true boxes are a COCO instance file")
        objects(content[name], f"{path}: {name!r}")
    checked_categories(content["categories"], path)
    in_file = {entry["id"] for entry in content["images"] if type(entry.get("id")) is int}
    place = {image.id: row for row, image in enumerate(tags.images)}
    if absent := [image.id for image in tags.images if image.id not in in_file]:
        raise ValueError(
            f"{path}: lacks {len(absent)} of the {len(place)} images of {tags.file or 'the tags'}, "
            f"such as image id {absent[0]}: give the true boxes of these images"
        )
    names = {name: index for index, name in enumerate(tags.class_names)}
    classes = {c["id"]: names.get(c["name"]) for c in content["categories"]}
    if absent := sorted(set(names) - {c["name"] for c in content["categories"]}):
        raise ValueError(f"{path}: has no category named {absent[0]!r}, which the tags have")
    found: dict[tuple[int, int], list[tuple[list[float], bool]]] = {}
    for entry in content["annotations"]:
        where = f"{path}: annotation id {entry.get('id')}"
        if missing := missing_keys(entry, ("image_id", "category_id", "bbox")):
            raise ValueError(f"{where} lacks {missing}; precision and recall need true boxes")
        box = entry["bbox"]
        if not isinstance(box, list) or len(box) != 4 or not all(map(is_finite_number, box)):
            raise ValueError(f"{where}: bbox {box!r} is not x, y, width, height")
        if not all(type(entry[key]) is int for key in ("image_id", "category_id")):
            raise ValueError(f"{where}: image_id and category_id are not whole numbers; correct it")
        image, index = place.get(entry["image_id"]), classes.get(entry["category_id"])
        if image is not None and index is not None:
            counts = not (entry.get("difficult") or entry.get("iscrowd"))
            found.setdefault((image, index), []).append((box, counts))
    return {
        key: TrueBoxes(np.array([b for b, _ in rows], float), np.array([c for _, c in rows], bool))
        for key, rows in found.items()
    }


def measure_boxes(
    kept: Detections, truth: dict[tuple[int, int], TrueBoxes], num_images: int, iou: float = IOU
) -> BoxQuality:
    """Precision, recall and F1 of boxes over all images and classes together."""
    order = np.lexsort((-kept.scores, kept.classes, kept.images))
    keys = np.stack([kept.images[order], kept.classes[order]], axis=1)
    bounds = np.flatnonzero((np.diff(keys, axis=0) != 0).any(axis=1)) + 1
    right = ignored = 0
    for rows in np.split(order, bounds) if len(order) else []:
        key = (int(kept.images[rows[0]]), int(kept.classes[rows[0]]))
        if key in truth:
            hits, passes = _pair(kept.boxes[rows], truth[key], iou)
            right, ignored = right + hits, ignored + passes
    objects = sum(int(own.counts.sum()) for own in truth.values())
    judged = len(kept) - ignored
    return BoxQuality(
        protocol=PROTOCOL.format(iou=iou),
        boxes_per_image=len(kept) / num_images,
        boxes=len(kept),
        ignored=ignored,
        objects=objects,
        right=right,
        precision=right / judged if judged else None,
        recall=right / objects if objects else None,
        f1=2 * right / (judged + objects) if judged + objects else None,
    )


def _pair(boxes: np.ndarray, truth: TrueBoxes, iou: float) -> tuple[int, int]:
    """(right, ignored) of boxes in falling order of their scores."""
    corners = [
        np.concatenate([b[:, :2], b[:, :2] + b[:, 2:]], axis=1) for b in (boxes, truth.boxes)
    ]
    overlaps = box_iou(*map(torch.from_numpy, corners)).numpy()
    reaches = overlaps >= iou - EXACT
    free = truth.counts.copy()
    right = ignored = 0
    for own, reached in zip(overlaps, reaches, strict=True):
        usable = reached & free
        if usable.any():
            free[np.where(usable, own, -1).argmax()] = False
            right += 1
        elif (reached & ~truth.counts).any():
            ignored += 1
    return right, ignored


def describe_quality(quality: BoxQuality) -> str:
    """The figures in a line, and their protocol in another."""
    figures = ("precision", "recall", "f1")
    values = {name: getattr(quality, name) for name in figures}
    shown = [f"{n} {'none' if v is None else format(v, '.3f')}" for n, v in values.items()]
    return (
        f"{quality.boxes_per_image:.2f} boxes an image, {', '.join(shown)} ({quality.right} of "
        f"{quality.boxes} boxes right, {quality.ignored} ignored, {quality.objects} objects)\n"
        f"protocol: {quality.protocol}"
    )
