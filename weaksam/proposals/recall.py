"""How many true boxes proposals find, per source and together, beside other proposals.

A true box counts as found where a proposal of its own has at least the IoU: proposals and true
boxes are paired greedily, the pair of the largest IoU first, each at most once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.ops import box_iou

from weaklabels.files import objects, read_json
from weaklabels.masks import is_finite_number
from weaklabels.voc import read_image_set, read_voc_annotation, voc_image_id
from weaksam.proposals.files import SOURCES, Proposals, read_proposal_file
from weaksam.proposals.images import ImageRecord, read_images
from weaksam.proposals.without_prompts import random_boxes

EXACT = 1e-9  # an IoU that equals the threshold but for rounding reaches it


@dataclass(frozen=True)
class Truth:
    """boxes: (n, 4) half-open x0, y0, x1, y1 in pixels.  difficult: (n,) bool, VOC's mark."""

    boxes: np.ndarray
    difficult: np.ndarray


@dataclass(frozen=True)
class RecallSettings:
    """thresholds: IoUs.  random_seed: of the random boxes, as many as the first file has."""

    thresholds: tuple[float, ...] = (0.5, 0.7, 0.9)
    random_seed: int = 0


@dataclass(frozen=True)
class RecallRow:
    """Recall of some proposals at each threshold, without difficult objects and with them.

    An object that there is none of has recall NaN, as json null.
    """

    proposals: str
    source: str
    boxes_per_image: float
    recall: tuple[float, ...]
    recall_with_difficult: tuple[float, ...]


def truth_of_coco(path: Path) -> dict[str, Truth]:
    """True boxes by image id of a COCO-form file; crowds are left out.

    Objects with `"difficult": 1` count as difficult.
    """
    content = read_json(path)
    found: dict[str, list[tuple[list[float], bool]]] = {r.id: [] for r in read_images(path)}
    if "annotations" not in content:
        raise ValueError(f"{path}: no list 'annotations'; recall needs the true boxes")
    for entry in objects(content["annotations"], f"{path}: 'annotations'"):
        if entry.get("iscrowd"):
            continue
        image, box = str(entry.get("image_id")), entry.get("bbox")
        whole = isinstance(box, list) and len(box) == 4 and all(map(is_finite_number, box))
        if image not in found or not whole:
            raise ValueError(
                f"{path}: annotation id {entry.get('id')} has the image_id {image} and the bbox "
                f"{box}; expected one of the file's images and x, y, width, height"
            )
        x, y, width, height = box
        found[image].append(([x, y, x + width, y + height], bool(entry.get("difficult"))))
    return {image: _truth(rows) for image, rows in found.items()}


def truth_of_voc(folder: Path, split: str) -> dict[str, Truth]:
    """True boxes by image id (the digits of VOC's name, as a number) of a split of VOC.

    Args:
        folder: VOC2007 or the like, with `Annotations` and `ImageSets`.
    """
    found = {}
    for name in read_image_set(str(folder / "ImageSets" / "Main" / f"{split}.txt")):
        objects = read_voc_annotation(str(folder / "Annotations" / f"{name}.xml")).objects
        rows = [
            ([o.bbox[0] - 1, o.bbox[1] - 1, o.bbox[2], o.bbox[3]], o.difficult) for o in objects
        ]
        found[str(voc_image_id(name))] = _truth(rows)
    return found


def _truth(rows: Sequence[tuple[Sequence[float], bool]]) -> Truth:
    boxes = np.array([box for box, _ in rows], np.float64).reshape(-1, 4)
    return Truth(boxes, np.array([difficult for _, difficult in rows], bool))


def measure_recall(
    files: Mapping[str, Path],
    images: Path,
    truth: Mapping[str, Truth],
    settings: RecallSettings = RecallSettings(),
) -> dict[str, Any]:
    """The report: settings and one `RecallRow` (as a dict) a file and source, and of random boxes.

    Args:
        files: proposal files by the name that the report gives them, such as selective search.
        images: COCO-form file that lists the images; each file has to be of just these.
        truth: true boxes by image id.
    """
    if not files:
        raise ValueError("no proposal file to measure")
    records = read_images(images)
    missing = [record.id for record in records if record.id not in truth]
    if missing:
        raise ValueError(
            f"no true boxes for {len(missing)} of {len(records)} images of {images}, such as "
            f"{missing[0]}"
        )
    rows, first = [], None
    for name, path in files.items():
        proposals = read_proposal_file(path, records)
        first = first or proposals
        sources = np.unique(proposals.source)
        rows.append(_row(name, "all", records, _boxes(proposals, None), truth, settings))
        if len(sources) > 1:
            rows += [
                _row(name, SOURCES[s], records, _boxes(proposals, s), truth, settings)
                for s in sources
            ]
    counts = np.diff(first.offsets)
    chance = [
        random_boxes(record.id, record.size_hw, int(count), settings.random_seed).boxes
        for record, count in zip(records, counts, strict=True)
    ]
    rows.append(_row("random boxes", "all", records, chance, truth, settings))
    objects = [truth[record.id] for record in records]
    return {
        "protocol": "greedy one-to-one matching, IoU of half-open boxes, crowds left out",
        "images": len(records),
        "objects": sum(int((~t.difficult).sum()) for t in objects),
        "difficult_objects": sum(int(t.difficult.sum()) for t in objects),
        "thresholds": list(settings.thresholds),
        "rows": [_plain(asdict(row)) for row in rows],
    }


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """Recalls as lists, with None in place of NaN."""
    return {
        key: [None if np.isnan(v) else v for v in value] if isinstance(value, tuple) else value
        for key, value in row.items()
    }


def _boxes(proposals: Proposals, source: int | None) -> list[np.ndarray]:
    """Boxes of each image, those of one source, or all."""
    found = []
    for index in range(len(proposals.ids)):
        rows = proposals.rows(index)
        boxes = proposals.boxes[rows]
        found.append(boxes if source is None else boxes[proposals.source[rows] == source])
    return found


def _row(
    name: str,
    source: str,
    records: Sequence[ImageRecord],
    boxes: Sequence[np.ndarray],
    truth: Mapping[str, Truth],
    settings: RecallSettings,
) -> RecallRow:
    both = []
    for difficult in (False, True):
        best = [
            matched_ious(t.boxes[~t.difficult | difficult], found)
            for t, found in zip((truth[r.id] for r in records), boxes, strict=True)
        ]
        joined = np.concatenate(best)
        both.append(
            tuple(
                float((joined >= threshold - EXACT).mean()) if len(joined) else float("nan")
                for threshold in settings.thresholds
            )
        )
    return RecallRow(name, source, float(np.mean([len(b) for b in boxes])), *both)


def matched_ious(truth: np.ndarray, proposals: np.ndarray) -> np.ndarray:
    """IoU (n,) of each true box with the proposal that it is paired with; 0 where none is left."""
    matched = np.zeros(len(truth))
    if len(truth) == 0 or len(proposals) == 0:
        return matched
    overlaps = box_iou(*(torch.from_numpy(np.asarray(b, np.float64)) for b in (truth, proposals)))
    overlaps = overlaps.numpy()
    for _ in range(min(overlaps.shape)):
        row, column = np.unravel_index(overlaps.argmax(), overlaps.shape)
        if overlaps[row, column] <= 0:
            break
        matched[row] = overlaps[row, column]
        overlaps[row], overlaps[:, column] = -1, -1
    return matched
