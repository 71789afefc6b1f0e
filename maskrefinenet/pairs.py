"""Pair predicted masks with ground truth: the training samples of MaskRefineNet."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from weaklabels.coco import Annotations, ImageInfo
from weaklabels.masks import Runs
from weaklabels.matching import Label, match_labels
from weaklabels.records import Record, instance_point

RULES = ("one_to_one", "nearest")


@dataclass(frozen=True)
class Pair:
    """One training sample; masks stay run-length encoded until they are cropped.

    point_xy: the ground truth's center of mass in pixels of the image.
    """

    image: ImageInfo
    class_index: int
    point_xy: tuple[float, float]
    prior: dict[str, Any]
    target: dict[str, Any]
    prediction_index: int
    target_index: int


def match_predictions(
    records: Iterable[Record], annotations: Annotations, *, rule: str = RULES[0]
) -> list[Pair]:
    """Pairs of the predictions of one file, in the order of its predictions.

    A prediction's point is matched with the centers of mass of the true instances of its class,
    crowds aside.

    Args:
        rule: one of `RULES`, as `weaklabels.matching.match_labels` describes them.

    Raises:
        ValueError: a record's image or class is not among the annotations, or a true instance has
            no usable mask.
    """
    if rule not in RULES:
        raise ValueError(f"matching rule {rule!r}; expected one of {RULES}")
    class_of = {category: index for index, category in enumerate(annotations.category_ids)}
    pairs: list[Pair] = []
    for record in records:
        image_id = record["image_id"]
        if image_id not in annotations.images:
            raise ValueError(f"{annotations.path} has no image {image_id}, the predictions have")
        image, (indices, truth) = annotations.images[image_id], _truth(annotations, image_id)
        pseudo = [_pseudo_label(instance, image, class_of) for instance in record["instances"]]
        for row, column in match_labels(truth, pseudo, rule):
            target = truth[row]
            pairs.append(
                Pair(
                    image=image,
                    class_index=class_of[target.category_id],
                    point_xy=target.point,
                    prior=record["instances"][column]["segmentation"],
                    target=target.rle,
                    prediction_index=column,
                    target_index=indices[row],
                )
            )
    return pairs


def _truth(annotations: Annotations, image_id: int) -> tuple[list[int], list[Label]]:
    """Places in the image's annotations, and labels, of all that are no crowds and not empty."""
    indices, labels = [], []
    for index, annotation in enumerate(annotations.instances[image_id]):
        if annotation.get("iscrowd", 0):
            continue
        rle = annotations.mask_rle(annotation, "training")
        runs = Runs.of(rle)
        if runs.area:
            indices.append(index)
            labels.append(Label(annotation["category_id"], rle, runs.center_of_mass()))
    return indices, labels


def _pseudo_label(instance: Record, image: ImageInfo, class_of: dict[int, int]) -> Label:
    category = instance["category_id"]
    if category not in class_of:
        raise ValueError(
            f"image {image.image_id}: category {category!r} is not among the annotations' "
            f"{sorted(class_of)}"
        )
    point = tuple(instance_point(instance, image.height, image.width))
    return Label(category, instance["segmentation"], point)
