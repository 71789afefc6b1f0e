"""Pseudo ground truth for a detector: which of the weak detector's boxes to learn from.

The adaptive rule of SPEC_WEAKSAM 5 keeps, of each class that an image is tagged with, the best
detection and those whose score comes close to it, and then drops boxes inside others. The rules
work on the detections of all images at once. Boxes are [x, y, width, height] in pixels.
"""

from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from weaklabels.files import file_sha256, read_json, write_json
from weaklabels.tags import Tags
from weaksam.detections import Detections
from weaksam.image_shards import difference

NORMALIZATIONS = ("range", "max", "minmax", "none")
TIES = ("keep_larger", "reference")
SCORE_EPSILON = 1e-8  # the reference's, beside the range of scores
AREA_EPSILON = 1e-6  # the reference's, beside the area of the box that may be inside another
PAIRS_AT_ONCE = 1 << 20  # of boxes that are compared, to bound memory


@dataclass(frozen=True)
class AdaptiveRule:
    """The paper's rule.

    keep: least normalized score; the best detection of a class is kept at any score.
    contain: share of a box's area that lies in another of its class from which on it is dropped.
    normalize: by an image's scores of the class, from m to M: "range" s / (M - m), the
        reference's; "max" s / M; "minmax" (s - m) / (M - m); "none".
    tie: of two boxes that contain each other, "keep_larger" keeps the larger one (of equal ones
        that of the higher score); "reference" drops both, so that a class may lose all its boxes.
    """

    keep: float = 0.3
    contain: float = 0.85
    normalize: str = "range"
    tie: str = "keep_larger"

    def __post_init__(self) -> None:
        for name in ("keep", "contain"):
            value = getattr(self, name)
            if not 0 < value <= 1:
                raise ValueError(f"{name}={value}; expected a number above 0 and up to 1")
        for name, allowed in (("normalize", NORMALIZATIONS), ("tie", TIES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}; expected one of {allowed}")

    def as_info(self) -> dict[str, Any]:
        """The rule as json."""
        return {"name": "adaptive"} | asdict(self)


@dataclass(frozen=True)
class TopRule:
    """The `count` best detections of each class; 1 is what the reference's VOC program runs."""

    count: int = 1

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count={self.count}; expected at least 1 box a class")

    def as_info(self) -> dict[str, Any]:
        """The rule as json."""
        return {"name": "top1" if self.count == 1 else "topk"} | asdict(self)


Rule = AdaptiveRule | TopRule


@dataclass(frozen=True)
class PseudoBoxes:
    """The boxes that a rule kept, by image, then class, then falling score.

    detections: B of them.  normalized: (B,) float64 scores as the rule compared them.
    dropped: how many detections were not kept, by reason: "untagged" (of a class that the image is
        not tagged with), "score", "contained".
    """

    detections: Detections
    normalized: np.ndarray
    dropped: dict[str, int]


def select_boxes(detections: Detections, tags: Tags, rule: Rule) -> PseudoBoxes:
    """The boxes to learn from.

    With every rule but the adaptive one of tie "reference", each class that an image is tagged with
    keeps a box where it has a detection.
    """
    group = detections.images * len(tags.categories) + detections.classes
    rows = np.flatnonzero(_tagged(tags)[group])
    scores, group = detections.scores[rows], group[rows]
    normalized, good = scores, np.ones(len(rows), bool)
    if isinstance(rule, AdaptiveRule):
        best, worst = _extremes(scores, group)
        normalized = _normalized(scores, best, worst, rule.normalize)
        good = (normalized >= rule.keep) | (scores == best)
    near = np.flatnonzero(good)
    near = near[np.lexsort((-scores[near], group[near]))]  # stable: first ones first
    rank = np.arange(len(near)) - _starts(group[near])
    if isinstance(rule, AdaptiveRule):  # of several best ones of low scores, the first
        near = near[(rank == 0) | (normalized[near] >= rule.keep)]
        inside = _contained(detections.boxes[rows[near]], _starts(group[near]), rule)
    else:
        near = near[rank < rule.count]
        inside = np.zeros(len(near), bool)
    dropped = {
        "untagged": len(detections) - len(rows),
        "score": len(rows) - len(near),
        "contained": int(inside.sum()),
    }
    kept = near[~inside]
    return PseudoBoxes(detections.take(rows[kept]), normalized[kept], dropped)


def leave_out(detections: Detections, tags: Tags, names: set[str]) -> tuple[Detections, Tags]:
    """Detections and tags without the images of these names, which have no suffix."""
    stays = np.array([Path(image.file_name).stem not in names for image in tags.images], bool)
    place = np.cumsum(stays) - 1  # in the images that stay
    kept = detections.take(np.flatnonzero(stays[detections.images]))
    images = tuple(image for image, own in zip(tags.images, stays, strict=True) if own)
    return replace(kept, images=place[kept.images]), replace(tags, images=images)


def _tagged(tags: Tags) -> np.ndarray:
    """(images * classes,) bool: whether the image is tagged with the class."""
    index_of, width = tags.index_of, len(tags.categories)
    tagged = np.zeros(len(tags.images) * width, bool)
    tagged[
        [
            row * width + index_of[number]
            for row, image in enumerate(tags.images)
            for number in image.category_ids
        ]
    ] = True
    return tagged


def _starts(group: np.ndarray) -> np.ndarray:
    """(N,) index at which the run of equal values begins that each value is part of."""
    first = np.append(True, group[1:] != group[:-1])[: len(group)]
    return np.flatnonzero(first)[np.cumsum(first) - 1]


def _extremes(scores: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N,) largest and (N,) least score of the group of each score."""
    best = np.zeros(group.max(initial=0) + 1)
    worst = np.full_like(best, np.inf)
    np.maximum.at(best, group, scores)
    np.minimum.at(worst, group, scores)
    return best[group], worst[group]


def _normalized(
    scores: np.ndarray, best: np.ndarray, worst: np.ndarray, normalize: str
) -> np.ndarray:
    """(N,) scores; see `AdaptiveRule`. Where all scores are equal, "minmax" makes them 1."""
    if normalize == "none":
        return scores
    if normalize == "range":
        return scores / (best - worst + SCORE_EPSILON)
    lowest = np.zeros_like(scores) if normalize == "max" else worst
    span = best - lowest
    return np.divide(scores - lowest, span, out=np.ones_like(scores), where=span > 0)


def _contained(boxes: np.ndarray, starts: np.ndarray, rule: AdaptiveRule) -> np.ndarray:
    """(N,) bool: whether another box of the group, kept or not, contains each box.

    With "keep_larger" a box can only be contained in one that is larger or, if as large, comes
    earlier. So one box of each group stays, whatever contains what.

    Args:
        boxes: (N, 4), by group, within a group by falling score.
        starts: (N,) index of the first box of each one's group.
    """
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    area = boxes[:, 2] * boxes[:, 3]
    inside = np.zeros(len(boxes), bool)
    earlier = np.arange(len(boxes)) - starts
    for part in _parts(earlier):
        counts = earlier[part]
        i = np.repeat(np.arange(part.start, part.stop), counts)
        first = np.repeat(np.cumsum(counts) - counts, counts)
        j = starts[i] + np.arange(len(i)) - first  # each of the boxes before i
        sides = np.maximum(np.minimum(high[i], high[j]) - np.maximum(low[i], low[j]), 0)
        both = sides[:, 0] * sides[:, 1]
        in_j = both / (area[i] + AREA_EPSILON) >= rule.contain
        in_i = both / (area[j] + AREA_EPSILON) >= rule.contain
        if rule.tie == "keep_larger":
            in_j &= area[i] <= area[j]
            in_i &= area[i] > area[j]
        inside[i[in_j]] = True
        inside[j[in_i]] = True
    return inside


def _parts(counts: np.ndarray) -> list[slice]:
    """Consecutive slices whose counts add up to about PAIRS_AT_ONCE each."""
    part = np.cumsum(counts) // PAIRS_AT_ONCE
    bounds = [0, *(np.flatnonzero(np.diff(part)) + 1).tolist(), len(counts)]
    return [slice(a, b) for a, b in zip(bounds[:-1], bounds[1:], strict=True)]


def counts_of(found: PseudoBoxes, tags: Tags) -> dict[str, Any]:
    """What was kept and what is missing, as json; classes by name where tagged images lack one."""
    kept, index_of, names = found.detections, tags.index_of, tags.class_names
    pairs = set(zip(kept.images.tolist(), kept.classes.tolist(), strict=True))
    without = Counter(
        names[index_of[number]]
        for row, image in enumerate(tags.images)
        for number in image.category_ids
        if (row, index_of[number]) not in pairs
    )
    return {
        "images": len(tags.images),
        "boxes": len(kept),
        "images_without_boxes": len(tags.images) - len(np.unique(kept.images)),
        "tags": sum(len(image.category_ids) for image in tags.images),
        "tags_without_boxes": sum(without.values()),
        "tags_without_boxes_by_class": dict(without),
        "dropped": found.dropped,
    }


def origin_of(
    rule: Rule, detections: Path, tags: Path, left_out: Path | None = None
) -> dict[str, Any]:
    """All that the boxes depend on: the rule, and digests of the files."""
    files = {"detections_sha256": file_sha256(detections), "tags_sha256": file_sha256(tags)}
    files["left_out_sha256"] = left_out and file_sha256(left_out)
    return {"rule": rule.as_info()} | files


def write_pseudo_boxes(
    path: str | Path, found: PseudoBoxes, tags: Tags, origin: dict[str, Any]
) -> dict[str, Any]:
    """Write COCO JSON that a detector trains on; returns `counts_of`, which `info` has, too.

    All images of the tags are listed. An annotation has `score`, the detector's, and
    `score_normalized`, which orders the boxes of one class and image and is no confidence: with
    "range" a class with one detection has a value near score * 1e8.

    Args:
        origin: see `origin_of`; goes into `info`.

    Raises:
        ValueError: the file is there and was made from something else.
    """
    path = Path(path)
    if path.exists():
        content = read_json(path)
        info = content.get("info") if isinstance(content, dict) else None
        if changed := difference(info, origin):
            raise ValueError(
                f"{path} was made with other {changed}; give another output, or remove it"
            )
    counts = counts_of(found, tags)
    kept = found.detections
    columns = (kept.images.tolist(), kept.classes.tolist(), kept.boxes.tolist())
    values = zip(*columns, kept.scores.tolist(), found.normalized.tolist(), strict=True)
    annotations = [
        {
            "id": number,
            "image_id": tags.images[image].id,
            "category_id": tags.categories[index][0],
            "bbox": box,
            "area": box[2] * box[3],
            "iscrowd": 0,
            "score": score,
            "score_normalized": normalized,
        }
        for number, (image, index, box, score, normalized) in enumerate(values, start=1)
    ]
    keys = ("id", "file_name", "height", "width")
    content = {
        "info": origin | counts,
        "images": [{key: getattr(image, key) for key in keys} for image in tags.images],
        "categories": [{"id": number, "name": name} for number, name in tags.categories],
        "annotations": annotations,
    }
    write_json(path, content)
    return counts
