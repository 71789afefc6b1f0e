"""How good a detector's boxes are: AP as COCO has it, and CorLoc.

CorLoc is the share of the images tagged with a class on which the best box of the class overlaps an
object of it by more than 0.5, averaged over classes. It is measured on training images.
"""

import contextlib
import io
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision.ops import box_iou

from weaklabels.tags import Tags
from weaklabels.voc import read_image_set, read_voc_annotation, voc_image_id
from weaksam.detections import Detections
from weaksam.pseudo_box_quality import TrueBoxes

CORLOC_IOU = 0.5
MAX_DETECTIONS = 100  # an image, as in COCO
PROTOCOL = (
    f"AP: COCO's box AP, {MAX_DETECTIONS} boxes an image, difficult objects and crowds ignored; "
    f"CorLoc: IoU above {CORLOC_IOU} with any object of the class, mean over classes"
)

Truth = dict[tuple[int, int], TrueBoxes]


@dataclass(frozen=True)
class DetectionQuality:
    """Figures in percent; None: there is nothing to find."""

    protocol: str
    images: int
    objects: int
    AP: float | None
    AP50: float | None
    AP75: float | None
    CorLoc: float | None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def read_voc_truth(folder: Path, split: str, tags: Tags) -> Truth:
    """True boxes of a split of VOC by place of image and of class in the tags."""
    index_of = {name: index for index, name in enumerate(tags.class_names)}
    place = {image.id: row for row, image in enumerate(tags.images)}
    found: dict[tuple[int, int], list[tuple[list[float], bool]]] = {}
    for name in read_image_set(str(folder / "ImageSets" / "Main" / f"{split}.txt")):
        row = place.get(voc_image_id(name))
        for entry in read_voc_annotation(str(folder / "Annotations" / f"{name}.xml")).objects:
            if row is not None and entry.name in index_of:
                x0, y0, x1, y1 = entry.bbox  # indices from 1, the last pixel inside
                box = [x0 - 1, y0 - 1, x1 - x0 + 1, y1 - y0 + 1]
                key = row, index_of[entry.name]
                found.setdefault(key, []).append((box, not entry.difficult))
    return {
        key: TrueBoxes(np.array([b for b, _ in rows], float), np.array([c for _, c in rows], bool))
        for key, rows in found.items()
    }


def measure_detections(found: Detections, tags: Tags, truth: Truth) -> DetectionQuality:
    """The figures of boxes on the images of a tag file; see `read_true_boxes` for the truth."""
    return DetectionQuality(
        protocol=PROTOCOL,
        images=len(tags.images),
        objects=sum(int(boxes.counts.sum()) for boxes in truth.values()),
        **average_precision(found, truth, tags),
        CorLoc=corloc(found, truth, tags),
    )


def corloc(found: Detections, truth: Truth, tags: Tags) -> float | None:
    """In percent; None without a tag. Objects count whether they are difficult or not."""
    order = np.lexsort((-found.scores, found.classes, found.images))
    pairs = np.stack([found.images[order], found.classes[order]], axis=1)
    first = np.ones(len(order), bool)
    first[1:] = (np.diff(pairs, axis=0) != 0).any(axis=1)
    best = {(int(found.images[row]), int(found.classes[row])): row for row in order[first]}
    index_of, hits = tags.index_of, [[] for _ in tags.categories]
    for place, image in enumerate(tags.images):
        for number in image.category_ids:
            key = place, index_of[number]
            row = best.get(key)
            is_hit = row is not None and key in truth
            hits[key[1]].append(
                is_hit and bool((_overlaps(found.boxes[row], truth[key]) > CORLOC_IOU).any())
            )
    shares = [np.mean(of_class) for of_class in hits if of_class]
    return 100 * float(np.mean(shares)) if shares else None


def _overlaps(box: np.ndarray, truth: TrueBoxes) -> np.ndarray:
    corners = [np.concatenate([b[:, :2], b[:, :2] + b[:, 2:]], 1) for b in (box[None], truth.boxes)]
    return box_iou(*map(torch.from_numpy, corners)).numpy()[0]


def average_precision(found: Detections, truth: Truth, tags: Tags) -> dict[str, float | None]:
    """AP, AP50 and AP75 in percent."""
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        evaluation = COCOeval(
            _coco(tags, _true_rows(truth)), _coco(tags, _found_rows(found)), "bbox"
        )
        evaluation.params.maxDets = [MAX_DETECTIONS]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, 0]  # IoU thresholds, recalls, classes
    thresholds = evaluation.params.iouThrs.round(2).tolist()
    chosen = {"AP": precision, "AP50": precision[thresholds.index(0.5)]}
    chosen["AP75"] = precision[thresholds.index(0.75)]
    return {name: _mean_percent(values) for name, values in chosen.items()}


def _mean_percent(values: np.ndarray) -> float | None:
    measured = values[values > -1]  # -1: no object of the class
    return 100 * float(measured.mean()) if measured.size else None


def _true_rows(truth: Truth) -> list[dict[str, Any]]:
    return [
        {"image_id": image, "category_id": index, "bbox": box.tolist(), "iscrowd": int(not counts)}
        for (image, index), own in truth.items()
        for box, counts in zip(own.boxes, own.counts, strict=True)
    ]


def _found_rows(found: Detections) -> list[dict[str, Any]]:
    columns = zip(found.images, found.classes, found.boxes, found.scores, strict=True)
    return [
        {"image_id": int(i), "category_id": int(c), "bbox": b.tolist(), "score": float(s)}
        for i, c, b, s in columns
    ]


def _coco(tags: Tags, rows: list[dict[str, Any]]) -> COCO:
    """pycocotools' index of rows whose images and categories are places in the tags."""
    coco = COCO()
    coco.dataset = {
        "images": [{"id": place} for place in range(len(tags.images))],
        "categories": [{"id": place} for place in range(len(tags.categories))],
        "annotations": [
            row | {"id": number, "area": row["bbox"][2] * row["bbox"][3]}
            for number, row in enumerate(rows, 1)
        ],
    }
    coco.createIndex()
    return coco
