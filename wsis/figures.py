"""Draw the pictures of figure/ from the folders of finished quick starts."""

import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from pycocotools import mask as mask_utils

from detectron2.data import DatasetMapper
from detectron2.modeling import meta_architecture
from weaklabels.coco import CocoFile
from weaklabels.evaluate import load_images
from weaklabels.files import read_json
from weaklabels.masks import center_of_mass
from weaklabels.matching import Label, match_labels
from weaklabels.sheet import (
    SheetRow,
    draw_rows,
    numbered_pseudo,
    numbered_truth,
    read_picture,
    true_points,
)
from weaklabels.statistics import ImageLabels
from wsis.config import load_config
from wsis.quickstart_report import BY_SEED, FULL_ROW
from wsis.trained_model import load_trained

STUDENT_SCORE = 0.25  # least score of a student's mask in a picture
SHEET_IMAGES = 5
DETECTORS = ("student", "student without points", "teacher")  # rows of the table, each a curve


def flag_of(run: Path, stage: str, name: str) -> str:
    """The value of a flag with which a stage of one seed's folder was run, from its marker."""
    marker = run / "stages" / f"{stage}.json"
    if not marker.exists():
        raise FileNotFoundError(
            f"{marker}: this stage is not finished; run `wsis quickstart` first"
        )
    flags = read_json(marker).get("inputs", {}).get("flags", {})
    if name not in flags:
        raise ValueError(
            f"{marker}: names no {name}; it was written by another version: run the stage again"
        )
    return flags[name]


def image_root_of(run: Path) -> Path:
    """The folder of a run's training images."""
    return Path(flag_of(run, "quality_unrefined", "image-root"))


def annotations_of(run: Path) -> Path:
    """The COCO file with the true masks of a run's training images."""
    return Path(flag_of(run, "quality_unrefined", "annotations"))


def load_labels(run: Path, name: str) -> dict[int, ImageLabels]:
    """Pseudo labels of one record file, beside the true masks of its images."""
    weak = Path(flag_of(run, "quality_unrefined", "weak-annotations"))
    return load_images(run / name, annotations_of(run), weak)


@torch.no_grad()
def student_labels(run: Path, entry: ImageLabels, root: Path, ids: Sequence[int]) -> ImageLabels:
    """What the student finds by itself on an image, in place of the pseudo labels."""
    cfg = load_config(flag_of(run, "student", "config-file"))
    cfg.merge_from_list([meta_architecture(cfg).num_classes_key, len(ids)])
    cfg.MODEL.WEIGHTS = str(run / "student" / "model_final.pth")
    record = {"file_name": str(root / entry.image["file_name"])}
    record |= {"height": entry.image["height"], "width": entry.image["width"]}
    inputs = DatasetMapper(cfg, is_train=False)(record)
    found = load_trained(cfg)([inputs])[0]["instances"].to("cpu")
    found = found[found.scores >= STUDENT_SCORE]
    labels = []
    for mask, index in zip(found.pred_masks.numpy(), found.pred_classes.tolist(), strict=True):
        rle = mask_utils.encode(np.asfortranarray(mask, dtype=np.uint8))
        center = center_of_mass(mask)
        labels.append(Label(ids[index], rle, center))
    matches = dict(match_labels(entry.truth, labels, "likeliest"))
    return replace(entry, pseudo=labels, matches=matches)


def overview(run: Path, image_id: int | None = None) -> np.ndarray:
    """The pipeline on a weak image, by default the one with the most instances: (H, W, 3) BGR."""
    root, truth = image_root_of(run), CocoFile(annotations_of(run))
    unrefined, refined = load_labels(run, "weak.jsonl"), load_labels(run, "weak_refined.jsonl")
    number = image_id
    if number is None:
        number = max(unrefined, key=lambda i: (len(true_points(unrefined[i])), -i))
    if number not in unrefined:
        raise ValueError(f"--image-id {number}: {run / 'weak.jsonl'} has no such image")
    student = student_labels(run, unrefined[number], root, sorted(truth.category_ids))
    stages = (unrefined[number], refined[number], student)
    columns = [*map(numbered_pseudo, stages), numbered_truth(unrefined[number])]
    picture = read_picture(root, unrefined[number].image)
    row = SheetRow(picture, true_points(unrefined[number]), columns)
    return draw_rows(("points", "teacher, guided by them", "refined", "student", "truth"), [row])


def pseudo_labels(run: Path) -> np.ndarray:
    """Weak images, evenly spread over all: labels before and after refinement, BGR."""
    root = image_root_of(run)
    unrefined, refined = load_labels(run, "weak.jsonl"), load_labels(run, "weak_refined.jsonl")
    numbers = [number for number, entry in unrefined.items() if true_points(entry)]
    places = np.linspace(0, len(numbers) - 1, SHEET_IMAGES).round().astype(int)
    rows = []
    for number in (numbers[place] for place in places):
        entry = unrefined[number]
        columns = [numbered_pseudo(entry), numbered_pseudo(refined[number]), numbered_truth(entry)]
        rows.append(SheetRow(read_picture(root, entry.image), true_points(entry), columns))
    return draw_rows(("points", "teacher, guided by them", "refined", "truth"), rows)


def results(budgets: Sequence[Path]) -> np.ndarray:
    """Mask AP of each detector over the share of images with masks, BGR.

    Args:
        budgets: folders of quick starts, each with its report.json.
    """
    reports = [read_json(folder / "report.json") for folder in budgets]
    reports.sort(key=lambda report: report["percent"])
    figure, axes = plt.subplots(figsize=(6, 4), dpi=120, layout="constrained")
    for name in DETECTORS:
        points = [(r["percent"], *spread(r, name)) for r in reports if name in r[BY_SEED]]
        if not points:
            continue
        x, mean, deviation = zip(*points, strict=True)
        axes.errorbar(x, mean, yerr=deviation, marker="o", capsize=3, label=name)
    for mean, _ in [spread(r, FULL_ROW.title) for r in reports if FULL_ROW.title in r[BY_SEED]]:
        axes.axhline(mean, linestyle="--", color="gray", label="masks of all images")
    axes.set_xscale("log")
    percents = [report["percent"] for report in reports]
    axes.set_xticks(percents, [f"{percent}%" for percent in percents], minor=False)
    axes.minorticks_off()
    axes.set(xlabel="images with masks", ylabel="mask AP on validation images", ylim=(0, None))
    numbers = sorted({report["training images"] for report in reports})
    axes.set_title(f"{' or '.join(map(str, numbers))} training images")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2)
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[:, :, 2::-1].copy()
    plt.close(figure)
    return pixels


def spread(report: dict, name: str) -> tuple[float, float]:
    """Mean AP of a row over the seeds, and its standard deviation, 0 of a single seed."""
    values = [ap for ap, _ in report[BY_SEED][name]]
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0
