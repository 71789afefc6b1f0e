"""Pair predicted masks with ground truth: the training samples of MaskRefineNet."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from .annotations import Annotations, ImageInfo, decode_mask, mask_rle
from .crops import centre_of_mass, mask_bounds
from .records import Record

RULES = ("one_to_one", "nearest")


@dataclass(frozen=True)
class Pair:
    """One training sample; masks stay run-length encoded until they are cropped.

    point_xy: the ground truth's centre of mass in pixels of the image.
    """

    image: ImageInfo
    class_index: int
    point_xy: tuple[float, float]
    prior: dict[str, Any]
    target: dict[str, Any]
    prediction_index: int
    target_index: int


@dataclass(frozen=True)
class _Target:
    index: int
    class_index: int
    centre_xy: tuple[float, float]
    reach: float  # half the diagonal of the box
    rle: dict[str, Any]


def match_predictions(
    records: Iterable[Record], annotations: Annotations, *, rule: str = "one_to_one"
) -> list[Pair]:
    """Pairs of the predictions of one file, in the order of its predictions.

    A prediction's point and an instance's centre of mass tell how near both are; only instances
    of the same class that are no crowds count. "one_to_one" gives the pairs of the least total
    distance, and none farther apart than half the diagonal of the instance's box. "nearest" is
    the reference's rule: every prediction goes to the nearest instance, however far, even twice.

    Raises:
        ValueError: where a record's image or class is not among the annotations.
    """
    if rule not in RULES:
        raise ValueError(f"matching rule {rule!r}; expected one of {RULES}")
    class_of = {category: index for index, category in enumerate(annotations.category_ids)}
    pairs: list[Pair] = []
    for record in records:
        image_id = record["image_id"]
        if image_id not in annotations.images:
            raise ValueError(f"{annotations.path} has no image {image_id}, the predictions have")
        image, targets = annotations.images[image_id], _targets(annotations, image_id, class_of)
        try:
            classes = [class_of[instance["category_id"]] for instance in record["instances"]]
        except KeyError as error:
            message = f"{annotations.path} has no category {error}, image {image_id} does"
            raise ValueError(message) from error
        points = [tuple(instance["point"]) for instance in record["instances"]]
        for number, target in _assign(classes, points, targets, rule):
            prior = record["instances"][number]["segmentation"]
            fields = (image, target.class_index, target.centre_xy, prior, target.rle)
            pairs.append(Pair(*fields, number, target.index))
    return pairs


def _targets(annotations: Annotations, image_id: int, class_of: dict[int, int]) -> list[_Target]:
    """Instances that a prediction may stand for; the crowds and the empty ones are none."""
    image, targets = annotations.images[image_id], []
    for index, annotation in enumerate(annotations.instances[image_id]):
        if annotation.get("iscrowd", 0):
            continue
        rle = mask_rle(annotations, annotation, image, "training")
        if annotation.get("category_id") not in class_of:
            raise ValueError(
                f"{annotations.path}: annotation {annotation.get('id')}: category "
                f"{annotation.get('category_id')!r} is not listed"
            )
        mask = decode_mask(rle, image.height, image.width)
        centre, bounds = centre_of_mass(mask), mask_bounds(mask)
        if centre is None or bounds is None:
            continue
        reach = math.hypot(bounds.width, bounds.height) / 2
        class_index = class_of[annotation["category_id"]]
        targets.append(_Target(index, class_index, centre, reach, rle))
    return targets


def _assign(
    classes: list[int], points: list[tuple[float, ...]], targets: list[_Target], rule: str
) -> list[tuple[int, _Target]]:
    """(prediction, target) of one image, class by class."""
    chosen: list[tuple[int, _Target]] = []
    for class_index in sorted(set(classes)):
        numbers = [i for i, value in enumerate(classes) if value == class_index]
        rivals = [target for target in targets if target.class_index == class_index]
        if not rivals:
            continue
        ours = np.array([points[i] for i in numbers], dtype=np.float64).reshape(-1, 2)
        theirs = np.array([target.centre_xy for target in rivals])
        distance = np.linalg.norm(ours[:, None] - theirs[None], axis=2)
        if rule == "nearest":
            chosen += [(numbers[i], rivals[j]) for i, j in enumerate(distance.argmin(axis=1))]
            continue
        within = distance <= np.array([target.reach for target in rivals])
        # A pair out of reach costs more than all pairs within reach together, so it takes none.
        forbidden = 1 + distance[within].sum()
        rows, columns = linear_sum_assignment(np.where(within, distance, forbidden))
        for i, j in zip(rows, columns, strict=True):
            if within[i, j]:
                chosen.append((numbers[i], rivals[j]))
    return sorted(chosen, key=lambda pair: pair[0])
