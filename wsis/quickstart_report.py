"""The quick start's results: one table over all seeds, an HTML page and pictures."""

import html
import json
import statistics
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as mask_utils
from tabulate import tabulate

from detectron2.data.detection_utils import read_image
from detectron2.utils.visualizer import ColorMode, Visualizer
from weaklabels.coco import CocoFile
from weaklabels.files import atomic_text
from weaklabels.masks import segmentation_rle
from weaklabels.pictures import write_picture
from wsis.sources import DataSource

SHOWN_SCORE = 0.3  # of a prediction that a picture shows
SHOWN_IMAGES = 6
SHOWN_WIDTH = 320  # pixels of one image in a picture
BY_SEED = "AP and AP50 by seed"  # key of report.json
HEADERS = ("row", "AP", "AP50", "what")
DETECTOR = "mask AP on validation images"
QUALITY = "labels of the weak images against their hidden masks, scores forced to 1"


@dataclass(frozen=True)
class SeedRun:
    """One finished run and where its files are."""

    seed: int
    output: Path


@dataclass(frozen=True)
class Row:
    """One line of the table; `name` of a folder with summary.json or of a quality report."""

    title: str
    name: str
    what: str

    def figures(self, run: SeedRun) -> tuple[float, float]:
        """AP and AP50 of one run, in percent; 0 where no instance was found at all."""
        quality = run.output / f"{self.name}.json"
        if quality.exists():
            found = json.loads(quality.read_text())["mask_ap"]["scores forced to 1"]
        else:
            summary = run.output / self.name / "inference" / "summary.json"
            found = json.loads(summary.read_text())["results"]["segm"]
        # Not measured (null or NaN): no instance was found at all.
        return tuple(found[key] if found[key] and found[key] > 0 else 0.0 for key in HEADERS[1:3])


FULL_ROW = Row("fully supervised", "full", f"{DETECTOR}; masks of all images")


def table_rows(percent: int, *, baseline: bool, full: bool) -> list[Row]:
    """The table's lines where `percent` of the images have masks; the last two are optional."""
    strong, weak = f"{percent}%", f"{100 - percent}%"
    rows = [
        Row("teacher", "teacher_detector", f"{DETECTOR}; masks of {strong}, nothing else"),
        Row("pseudo labels, unrefined", "quality_unrefined", QUALITY),
        Row("pseudo labels, refined", "quality_refined", QUALITY),
        Row("student", "student", f"{DETECTOR}; masks of {strong}, points of {weak}"),
    ]
    if baseline:
        what = f"{DETECTOR}; masks of {strong}, the teacher's confident masks on {weak}"
        rows.append(Row("student without points", "student_without_points", what))
    return [*rows, FULL_ROW] if full else rows


def spread(values: list[float]) -> str:
    """The mean, with the standard deviation over seeds where there are several."""
    mean = f"{statistics.fmean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.1f}"


def table(runs: list[SeedRun], rows: list[Row]) -> list[list[str]]:
    lines = []
    for row in rows:
        ap, ap50 = zip(*(row.figures(run) for run in runs), strict=True)
        lines.append([row.title, spread(list(ap)), spread(list(ap50)), row.what])
    return lines


def write_report(
    output: Path,
    runs: list[SeedRun],
    source: DataSource,
    rows: list[Row],
    *,
    percent: int,
    smoke: bool,
) -> str:
    """Write report.html, report.json and pictures below `output`; returns the table as text."""
    lines = table(runs, rows)
    seeds = [run.seed for run in runs]
    title = f"PointWSSIS quick start, masks of {percent}% of the images, "
    title += f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
    if smoke:
        title += " (smoke run: a few iterations; the figures mean nothing)"
    pictures = draw_pictures(runs[0], rows, source)
    figures = {row.title: [row.figures(run) for run in runs] for row in rows}
    content = {"title": title, "percent": percent, "seeds": seeds, BY_SEED: figures}
    content |= {"training images": len(CocoFile(source.train_json).images)}
    with atomic_text(output / "report.json") as file:
        file.write(json.dumps(content, indent=1) + "\n")
    with atomic_text(output / "report.html") as file:
        file.write(page(title, lines, {k: v.relative_to(output) for k, v in pictures.items()}))
    return f"{title}\n\n" + tabulate(lines, HEADERS, disable_numparse=True)


def draw_pictures(run: SeedRun, rows: list[Row], source: DataSource) -> dict[str, Path]:
    """One picture of a trained network, and those of the pseudo labels, each with its caption."""
    network = next(row for row in rows if row.name in ("student", FULL_ROW.name))
    path = run.output / f"{network.name}.png"
    draw_predictions(run.output / network.name, source, path)
    caption = f"{network.title} on validation images (left: prediction, right: truth)"
    labels = [row for row in rows if row.what == QUALITY]
    return {caption: path} | {row.title: run.output / f"{row.name}.png" for row in labels}


def page(title: str, lines: list[list[str]], pictures: dict[str, Path]) -> str:
    rows = "\n".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>"
        for line in lines
    )
    head = "".join(f"<th>{name}</th>" for name in HEADERS)
    images = "\n".join(
        f'<h2>{html.escape(caption.capitalize())}</h2>\n<img src="{path.as_posix()}" alt="">'
        for caption, path in pictures.items()
    )
    return f"""<!doctype html>
<meta charset="utf-8">
<title>{html.escape(title)}</title>
<style>
body {{ font-family: sans-serif; max-width: 75em; margin: 2em auto; padding: 0 1em; }}
table {{ border-collapse: collapse; }}
td, th {{ border-bottom: 1px solid #ccc; padding: 0.3em 0.8em; text-align: left; }}
img {{ max-width: 100%; }}
</style>
<h1>{html.escape(title)}</h1>
<table>
<tr>{head}</tr>
{rows}
</table>
{images}
"""


def draw_predictions(run: Path, source: DataSource, path: Path) -> None:
    """A grid of validation images: a run's confident masks beside the true ones."""
    truth = CocoFile(source.val_json)
    names = {category["id"]: category["name"] for category in truth.header["categories"]}
    results = json.loads((run / "inference" / "coco_instances_results.json").read_text())
    root = Path(source.test_name.rpartition(":")[2])
    shown = list(truth.images.values())[:SHOWN_IMAGES]
    true_masks = {image["id"]: [] for image in shown}
    for annotation in truth.annotations():
        if annotation["image_id"] in true_masks and not annotation.get("iscrowd"):
            true_masks[annotation["image_id"]].append(annotation)
    pairs = []
    for image in shown:
        pixels = read_image(str(root / image["file_name"]), "RGB")
        found = [r for r in results if r["image_id"] == image["id"] and r["score"] >= SHOWN_SCORE]
        sides = [draw(pixels, e, names, image) for e in (found, true_masks[image["id"]])]
        pairs.append(np.hstack(sides))
    height = max(pair.shape[0] for pair in pairs)
    padded = [
        cv2.copyMakeBorder(p, 0, height - len(p), 0, 0, cv2.BORDER_CONSTANT, value=(255,) * 3)
        for p in pairs
    ]
    half = len(padded) // 2
    grid = np.hstack([np.vstack(padded[:half]), np.vstack(padded[half : 2 * half])])
    write_picture(path, np.ascontiguousarray(grid[:, :, ::-1]))


def draw(pixels: np.ndarray, entries: list[dict], names: dict[int, str], image: dict) -> np.ndarray:
    """RGB picture, SHOWN_WIDTH wide, with the masks and class names of COCO entries."""
    size = image["height"], image["width"]
    masks = [mask_utils.decode(segmentation_rle(e["segmentation"], *size)) for e in entries]
    labels = [names[entry["category_id"]] for entry in entries]
    scale = SHOWN_WIDTH / size[1]
    visualizer = Visualizer(pixels, scale=scale, instance_mode=ColorMode.IMAGE)
    masks = np.array(masks).reshape(-1, *size)
    return visualizer.overlay_instances(masks=masks, labels=labels).get_image()
