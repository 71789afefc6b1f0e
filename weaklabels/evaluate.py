"""Measure pseudo labels against hidden full masks.

Labels are prediction records (.jsonl) or a merged COCO file. Reported: COCO mask AP with the
labels' own scores and with scores forced to 1, and over all points: recall, IoU, boundary IoU.
AP of pseudo labels is not the AP of a detector: true points told the labels where to look.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate
from tqdm import tqdm

from weaklabels.coco import Annotations, CocoFile
from weaklabels.masks import Runs, is_finite_number, segmentation_rle
from weaklabels.matching import Label, match_labels
from weaklabels.pictures import write_picture
from weaklabels.points import finite_point
from weaklabels.quality import label_ap
from weaklabels.records import Located, Record, read_records
from weaklabels.sheet import draw_sheet
from weaklabels.statistics import ImageLabels, Outcome, judge, size_class, summarize

COLUMNS = ("recall", "recall_iou50", "miou", "miou_labelled", "boundary_iou")


def load_images(
    labels: Path, truth_path: Path, weak_path: Path | None = None
) -> dict[int, ImageLabels]:
    """All images to judge, with true and pseudo labels, matched.

    Args:
        labels: prediction records (.jsonl), or a merged COCO file, which needs `weak_path`.
        truth_path: COCO file with all masks.
        weak_path: COCO file (*_w.json) of the images to judge and of their points.
    """
    truth = CocoFile(truth_path)
    weak = CocoFile(weak_path) if weak_path else None
    is_records = labels.suffix == ".jsonl"
    if weak:
        image_ids = set(weak.images)
    elif is_records:
        image_ids = {record["image_id"] for _, record in read_records(labels)}
    else:
        raise ValueError(
            f"{labels}: a COCO file of labels may hold strong images too; "
            "--weak-annotations must say which images to judge"
        )
    unknown = sorted(image_ids - truth.images.keys())
    if unknown:
        raise ValueError(
            f"{truth_path} lacks {len(unknown)} images of {weak_path or labels}, such as image id "
            f"{unknown[0]}: give a file that has their masks"
        )
    images = load_truth(truth, weak, image_ids)
    categories = set(truth.category_ids)
    if is_records:
        add_records(images, read_records(labels), categories)
    else:
        _add_merged(images, CocoFile(labels), categories)
    for entry in images.values():
        entry.matches = dict(match_labels(entry.truth, entry.pseudo, "likeliest"))
    return images


def load_truth(
    truth: CocoFile, weak: CocoFile | None, image_ids: set[int]
) -> dict[int, ImageLabels]:
    """True instances of the given images; each has the weak file's point, else its own center."""
    points = {}
    if weak:
        for annotation in weak.annotations():
            if "point" in annotation:
                where = f"{weak.path}: annotation id {annotation['id']}"
                points[annotation["id"]] = _point(where, annotation["point"])
    images = {i: ImageLabels(image) for i, image in truth.images.items() if i in image_ids}
    for annotation in truth.annotations():
        if annotation["image_id"] in images:
            entry = images[annotation["image_id"]]
            where = f"{truth.path}: annotation id {annotation['id']}"
            rle = _rle(where, annotation.get("segmentation"), entry.image)
            _add_truth(annotation, rle, entry, points.get(annotation["id"]))
    return images


def add_records(
    images: dict[int, ImageLabels], records: Iterable[Located], categories: set[int]
) -> None:
    """Add the pseudo labels of prediction records; every record's image must be among `images`."""
    for where, record in records:
        if record["image_id"] not in images:
            raise ValueError(
                f"{where}: image {record['image_id']} is not among the images to judge"
            )
        entry = images[record["image_id"]]
        for index, instance in enumerate(record["instances"]):
            _add_pseudo(f"{where}: instance {index}", instance, entry, categories)


def records_ap(records: Iterable[Record], annotations: Annotations) -> dict[str, float | None]:
    """`quality.label_ap` of records, scores forced to 1, on the images of the records.

    Raises:
        ValueError: a record's image is not among the annotations, an instance has no usable mask,
            or there is no instance.
    """
    located = [(f"image {record['image_id']}", record) for record in records]
    images: dict[int, ImageLabels] = {}
    for _, record in located:
        image_id = record["image_id"]
        if image_id not in annotations.images:
            raise ValueError(f"{annotations.path} has no image {image_id}, the predictions have")
        info = annotations.images[image_id]
        images[image_id] = ImageLabels({"id": image_id, "height": info.height, "width": info.width})
        for annotation in annotations.instances[image_id]:
            rle = annotations.mask_rle(annotation, "evaluation")
            _add_truth(annotation, rle, images[image_id])
    if not any(entry.truth for entry in images.values()):
        raise ValueError(f"{annotations.path}: no instance on the predictions' images")
    add_records(images, located, set(annotations.category_ids))
    return label_ap(images, force_scores=True)


def _add_merged(images: dict[int, ImageLabels], source: CocoFile, categories: set[int]) -> None:
    """Add the pseudo labels of a merged COCO file that lie on `images`."""
    for annotation in source.annotations():
        if annotation["image_id"] in images:
            where = f"{source.path}: annotation id {annotation['id']}"
            _add_pseudo(where, annotation, images[annotation["image_id"]], categories)


def _add_truth(
    annotation: dict[str, Any],
    rle: dict[str, Any],
    entry: ImageLabels,
    point: tuple[float, float] | None = None,
) -> None:
    runs = Runs.of(rle)
    if runs.area:  # nothing can be compared with an empty mask
        crowd = bool(annotation.get("iscrowd", 0))
        point = point or runs.center_of_mass()
        entry.truth.append(Label(annotation["category_id"], rle, point, crowd=crowd))


def _add_pseudo(
    where: str, instance: dict[str, Any], entry: ImageLabels, categories: set[int]
) -> None:
    if instance["category_id"] not in categories:
        raise ValueError(f"{where}: category_id {instance['category_id']!r} is not in the truth")
    rle = _rle(where, instance.get("segmentation"), entry.image)
    runs = Runs.of(rle)
    if runs.area:
        # Files without points: the best guess at where the point was is the mask's center.
        given = instance.get("point")
        point = runs.center_of_mass() if given is None else _point(where, given)
        score = instance.get("score", 1.0)
        if not is_finite_number(score):
            raise ValueError(f"{where}: score {score!r} is not a finite number")
        entry.pseudo.append(Label(instance["category_id"], rle, point, float(score)))


def _rle(where: str, segmentation: Any, image: dict[str, Any]) -> dict[str, Any]:
    try:
        return segmentation_rle(segmentation, image["height"], image["width"])
    except ValueError as error:
        raise ValueError(f"{where}: {error}; correct or remove it") from error


def _point(where: str, point: Any) -> tuple[float, float]:
    try:
        return finite_point(point)
    except ValueError as error:
        raise ValueError(f"{where}: {error}; correct or remove it") from error


def evaluate_labels(
    images: dict[int, ImageLabels], names: dict[int, str], source: str
) -> dict[str, Any]:
    """The whole report, ready for JSON. `names`: category id to name; `source`: the label file."""
    outcomes: list[Outcome] = []
    for entry in tqdm(images.values(), "images", unit="image"):
        outcomes += judge(entry)
    pseudo = sum(len(entry.pseudo) for entry in images.values())
    matched = sum(len(entry.matches) for entry in images.values())
    by_class = {
        name: summarize(o for o in outcomes if o.category_id == category)
        for category, name in names.items()
        if any(o.category_id == category for o in outcomes)
    }
    by_size = {
        name: summarize(o for o in outcomes if size_class(o.area) == name)
        for name in ("small", "medium", "large")
    }
    return {
        "what": "pseudo-label quality against true masks (not detector AP)",
        "labels": source,
        "images": len(images),
        "pseudo_labels": pseudo,
        "pseudo_labels_without_instance": pseudo - matched,
        "mask_ap": {
            "scores as given": _rounded(label_ap(images, force_scores=False)),
            "scores forced to 1": _rounded(label_ap(images, force_scores=True)),
        },
        "points": summarize(outcomes),
        "points_by_class": by_class,
        "points_by_size": by_size,
    }


def _rounded(figures: dict[str, float | None]) -> dict[str, float | None]:
    return {n: None if value is None else round(value, 3) for n, value in figures.items()}


def format_report(report: dict[str, Any]) -> str:
    """Two tables for people: AP by the way of scoring, and point statistics by group."""
    modes = report["mask_ap"]
    keys = list(next(iter(modes.values())))
    ap_rows = [[mode, *(values[k] for k in keys)] for mode, values in modes.items()]
    groups = {"all": report["points"]}
    groups |= report["points_by_size"] | report["points_by_class"]
    rows = [[name, g["points"], *(g[c] for c in COLUMNS)] for name, g in groups.items()]
    style: dict[str, Any] = {"floatfmt": ".1f", "missingval": "-"}
    return (
        f"{report['what']}: {report['labels']}, {report['images']} images, "
        f"{report['pseudo_labels']} labels, "
        f"{report['pseudo_labels_without_instance']} of them without an instance\n\n"
        + tabulate(ap_rows, ["mask AP", *keys], **style)
        + "\n\n"
        + tabulate(rows, ["points", "number", *COLUMNS], **style)
    )


def write_sheet(
    path: Path, images: dict[int, ImageLabels], image_root: Path, num_images: int
) -> None:
    """A contact sheet of `num_images` images with instances, evenly spread over all of them."""
    shown = [entry for entry in images.values() if entry.truth]
    if not shown:
        raise ValueError("no image has a true instance: there is nothing to show on a sheet")
    places = np.linspace(0, len(shown) - 1, min(num_images, len(shown))).round().astype(int)
    write_picture(path, draw_sheet([shown[i] for i in places], image_root))
