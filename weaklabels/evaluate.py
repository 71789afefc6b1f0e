"""Measure pseudo labels against hidden full masks.

    python tools/evaluate_labels.py --truth-json instances_train2017.json --labels weak.jsonl \\
        --weak-json instances_train2017_10p_w.json --output quality.json \\
        --image-root train2017 --sheet quality.png

Labels are prediction records (.jsonl) or a merged COCO file. Reported: COCO mask AP with the
labels' own scores and with scores forced to 1, and over all points: recall, IoU, boundary IoU.
AP of pseudo labels is not the AP of a detector: true points told the labels where to look.
"""

import argparse
import contextlib
import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tabulate import tabulate
from tqdm import tqdm

from weaklabels.coco import CocoFile
from weaklabels.files import write_json
from weaklabels.masks import Runs, segmentation_rle
from weaklabels.pictures import write_picture
from weaklabels.quality import (
    ImageLabels,
    Label,
    Outcome,
    judge,
    match_points,
    size_class,
    summarise,
)
from weaklabels.records import read_records
from weaklabels.sheet import draw_sheet

LEAST_MAX_LABELS = 100  # an image, as COCO's AP; more where an image has more pseudo labels
COLUMNS = ("recall", "recall_iou50", "miou", "miou_labelled", "boundary_iou")


def load_truth(
    truth: CocoFile, weak: CocoFile | None, image_ids: set[int]
) -> dict[int, ImageLabels]:
    """True instances of the given images; each has the weak file's point, else its own centre."""
    points = {}
    if weak:
        points = {a["id"]: a["point"] for a in weak.annotations() if "point" in a}
    images = {i: ImageLabels(image) for i, image in truth.images.items() if i in image_ids}
    for annotation in truth.annotations():
        if annotation["image_id"] not in images:
            continue
        entry = images[annotation["image_id"]]
        where = f"{truth.path}: annotation id {annotation['id']}"
        rle = _rle(where, annotation.get("segmentation"), entry.image)
        runs = Runs.of(rle)
        if runs.area:  # nothing can be compared with an empty mask
            point = tuple(points.get(annotation["id"], runs.centre_of_mass()))
            crowd = bool(annotation.get("iscrowd", 0))
            entry.truth.append(Label(annotation["category_id"], rle, point, crowd=crowd))
    return images


def load_records(path: Path, images: dict[int, ImageLabels], categories: set[int]) -> None:
    """Add the pseudo labels of prediction records; every record's image must be among `images`."""
    seen: set[int] = set()
    for where, record in read_records(path):
        image_id = record["image_id"]
        if image_id not in images:
            raise ValueError(f"{where}: image {image_id} is not among the images to judge")
        if image_id in seen:
            raise ValueError(f"{where}: image {image_id} has a record already; one an image")
        seen.add(image_id)
        for index, instance in enumerate(record["instances"]):
            _add_pseudo(f"{where}: instance {index}", instance, images[image_id], categories)


def load_merged(source: CocoFile, images: dict[int, ImageLabels], categories: set[int]) -> None:
    """Add the pseudo labels of a merged COCO file that lie on `images`."""
    for annotation in source.annotations():
        if annotation["image_id"] in images:
            where = f"{source.path}: annotation id {annotation['id']}"
            _add_pseudo(where, annotation, images[annotation["image_id"]], categories)


def _add_pseudo(
    where: str, instance: dict[str, Any], entry: ImageLabels, categories: set[int]
) -> None:
    if instance["category_id"] not in categories:
        raise ValueError(f"{where}: category_id {instance['category_id']!r} is not in the truth")
    rle = _rle(where, instance["segmentation"], entry.image)
    runs = Runs.of(rle)
    if runs.area:
        # Files without points: the best guess at where the point was is the mask's centre.
        point = tuple(instance.get("point", runs.centre_of_mass()))
        label = Label(instance["category_id"], rle, point, float(instance.get("score", 1.0)))
        entry.pseudo.append(label)


def _rle(where: str, segmentation: Any, image: dict[str, Any]) -> dict[str, Any]:
    try:
        return segmentation_rle(segmentation, image["height"], image["width"])
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def load_images(labels: Path, truth_json: Path, weak_json: Path | None) -> dict[int, ImageLabels]:
    """All images to judge, with true and pseudo labels, matched."""
    truth = CocoFile(truth_json)
    weak = CocoFile(weak_json) if weak_json else None
    is_records = labels.suffix == ".jsonl"
    if weak:
        image_ids = set(weak.images)
    elif is_records:
        image_ids = {record["image_id"] for _, record in read_records(labels)}
    else:
        raise ValueError(
            f"{labels}: a COCO file of labels may hold strong images too; "
            "--weak-json must say which images to judge"
        )
    unknown = sorted(image_ids - truth.images.keys())
    if unknown:
        raise ValueError(f"{truth_json}: lacks {len(unknown)} images, e.g. image id {unknown[0]}")
    images = load_truth(truth, weak, image_ids)
    categories = set(truth.category_ids)
    if is_records:
        load_records(labels, images, categories)
    else:
        load_merged(CocoFile(labels), images, categories)
    for entry in images.values():
        entry.matches = match_points(entry.truth, entry.pseudo)
    return images


def coco_ap(images: dict[int, ImageLabels], force_scores: bool) -> dict[str, float | None]:
    """COCO mask AP in percent; None where there is no instance to find."""
    categories = sorted({label.category_id for e in images.values() for label in e.truth})
    most = max((len(entry.pseudo) for entry in images.values()), default=0)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        truth = _coco(images, categories, "truth", False)
        evaluation = COCOeval(truth, _coco(images, categories, "pseudo", force_scores), "segm")
        evaluation.params.maxDets = [max(LEAST_MAX_LABELS, most)]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"]  # (IoU thresholds, recalls, classes, areas, 1)
    areas = evaluation.params.areaRngLbl
    thresholds = evaluation.params.iouThrs.round(2).tolist()
    picks = {"AP": precision[:, :, :, 0]}
    for threshold in (0.5, 0.75):
        picks[f"AP{threshold * 100:.0f}"] = precision[thresholds.index(threshold), :, :, 0]
    for name in ("small", "medium", "large"):
        picks[f"AP{name[0]}"] = precision[:, :, :, areas.index(name)]
    return {name: _mean_valid(values) for name, values in picks.items()}


def _mean_valid(values: np.ndarray) -> float | None:
    valid = values[values > -1]  # -1: no such instance
    return round(100 * float(valid.mean()), 3) if valid.size else None


def _coco(
    images: dict[int, ImageLabels], categories: list[int], kind: str, force_scores: bool
) -> COCO:
    annotations = []
    for image_id, entry in images.items():
        for label in getattr(entry, kind):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": label.category_id,
                    "segmentation": label.rle,
                    "area": float(mask_utils.area(label.rle)),
                    "bbox": mask_utils.toBbox(label.rle).tolist(),
                    "iscrowd": int(label.crowd),
                    "score": 1.0 if force_scores else label.score,
                }
            )
    coco = COCO()
    coco.dataset = {
        "images": [entry.image for entry in images.values()],
        "annotations": annotations,
        "categories": [{"id": c} for c in categories],
    }
    coco.createIndex()
    return coco


def evaluate_labels(
    images: dict[int, ImageLabels], names: dict[int, str], source: str
) -> dict[str, Any]:
    """The whole report, ready for json. `names`: category id to name; `source`: the label file."""
    outcomes: list[Outcome] = []
    for entry in tqdm(images.values(), "images", unit="image"):
        outcomes += judge(entry)
    pseudo = sum(len(entry.pseudo) for entry in images.values())
    matched = sum(len(entry.matches) for entry in images.values())
    by_class = {
        name: summarise(o for o in outcomes if o.category_id == category)
        for category, name in names.items()
        if any(o.category_id == category for o in outcomes)
    }
    by_size = {
        name: summarise(o for o in outcomes if size_class(o.area) == name)
        for name in ("small", "medium", "large")
    }
    return {
        "what": "pseudo-label quality against true masks (not detector AP)",
        "labels": source,
        "images": len(images),
        "pseudo_labels": pseudo,
        "pseudo_labels_without_instance": pseudo - matched,
        "mask_ap": {
            "scores as given": coco_ap(images, force_scores=False),
            "scores forced to 1": coco_ap(images, force_scores=True),
        },
        "points": summarise(outcomes),
        "points_by_class": by_class,
        "points_by_size": by_size,
    }


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


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--truth-json", type=Path, required=True, help="COCO file with all masks")
    parser.add_argument(
        "--labels", type=Path, required=True, help="records (.jsonl) or merged COCO file (.json)"
    )
    parser.add_argument(
        "--weak-json",
        type=Path,
        help="COCO file (*_w.json) of the images to judge and their points",
    )
    parser.add_argument("--output", type=Path, help="write the report as json")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet (.png)")
    parser.add_argument("--image-root", type=Path, help="folder of the images, for --sheet")
    parser.add_argument("--sheet-images", type=int, default=6, metavar="N")
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.sheet and (not args.image_root or args.sheet.suffix != ".png" or args.sheet_images < 1):
        parser.error("--sheet NAME.png needs --image-root, and --sheet-images of 1 or more")
    try:
        images = load_images(args.labels, args.truth_json, args.weak_json)
        header = CocoFile(args.truth_json).header
        names = {c["id"]: str(c.get("name", c["id"])) for c in header["categories"]}
        report = evaluate_labels(images, names, str(args.labels))
        if args.sheet:
            write_sheet(args.sheet, images, args.image_root, args.sheet_images)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if args.output:
        write_json(args.output, report)
    print(format_report(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
