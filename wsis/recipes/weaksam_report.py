"""WeakSAM's quick start: tables over all seeds, an HTML page with pictures of ten images."""

import html
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

from weaklabels.files import atomic_text, read_json
from weaklabels.tags import Tags, read_tags
from weaksam.detection_quality import PROTOCOL, measure_detections
from weaksam.detections import Detections, read_detections
from weaksam.proposals.chance import random_detections
from weaksam.proposals.files import read_proposal_file
from weaksam.proposals.images import read_images
from weaksam.pseudo_box_quality import read_true_boxes
from wsis.recipes import weaksam_retraining_report as retraining
from wsis.recipes.weaksam_pictures import draw_pictures
from wsis.recipes.weaksam_plan import WeakPlan
from wsis.recipes.weaksam_quickstart_retraining import RetrainedRun

DETECTOR_HEADERS = ("detector", "AP50 on test images", "CorLoc on training images")
PROPOSAL_HEADERS = ("proposals", "boxes a test image", "recall @.5", "@.7", "@.9")
RANDOM = "random scores, selective search"
Figures = dict[str, list[float]]
Table = tuple[tuple[str, ...], list]


@dataclass(frozen=True)
class DetectorRow:
    """Results of one detector, COCO's lists: on the test images and on the training images."""

    title: str
    test: Path
    train: Path


@dataclass(frozen=True)
class WeakRun:
    """One finished seed.

    plan, prompted: with proposals of selective search, and of the prompted segmenter.
    retrained: what learned from pseudo boxes; None where the run ends before.
    """

    plan: WeakPlan
    prompted: WeakPlan
    rows: tuple[DetectorRow, ...]
    retrained: RetrainedRun | None = None


def write_report(output: Path, runs: Sequence[WeakRun], *, smoke: bool) -> str:
    """Write report.html, report.json and pictures below `output`; returns the tables as text."""
    detectors: Figures = {}
    proposals: Figures = {}
    for run in runs:
        add_figures(detectors, detector_figures(run))
        add_figures(proposals, proposal_figures(run))
    tables = [
        (DETECTOR_HEADERS, lines(detectors, "{:.1f}")),
        (PROPOSAL_HEADERS, lines(proposals, "{:.2f}")),
    ]
    tables, more, protocols = with_retraining(tables, runs)
    title = f"WeakSAM quick start, {len(runs)} seed{'s' * (len(runs) > 1)}"
    if smoke:
        title += " (smoke run: a few iterations; the figures mean nothing)"
    content = {"title": title, "protocol": PROTOCOL}
    content |= {"detectors by seed": detectors, "proposals by seed": proposals, **more}
    with atomic_text(output / "report.json") as file:
        file.write(json.dumps(content, indent=1) + "\n")
    first = runs[0]
    pictures = draw_pictures(first.prompted, first.rows[-1].test, output / "pictures")
    with atomic_text(output / "report.html") as file:
        places = [path.relative_to(output) for path in pictures]
        file.write(page(title, tables, protocols, places))
    texts = [tabulate(rows, headers, disable_numparse=True) for headers, rows in tables]
    return "\n\n".join([title, *texts, *(f"protocol: {text}" for text in protocols)])


def with_retraining(
    tables: list[Table], runs: Sequence[WeakRun]
) -> tuple[list[Table], dict[str, Figures], list[str]]:
    """The tables and those of what learned from pseudo boxes, its figures by seed, protocols."""
    found = [(run, run.retrained) for run in runs if run.retrained is not None]
    if not found:
        return tables, {}, [PROTOCOL]
    boxes: Figures = {}
    detectors: Figures = {}
    masks: Figures = {}
    for run, retrained in found:
        tags = read_tags(run.plan.tags("test"))
        test = _measure(run.plan, "test")
        add_figures(boxes, retraining.box_figures(retrained))
        add_figures(
            detectors,
            retraining.detector_figures(
                retrained, lambda path, tags=tags, test=test: test(read_detections(path, tags)).AP50
            ),
        )
        add_figures(masks, retraining.mask_figures(retrained))
    tables = [
        *tables,
        (retraining.BOX_HEADERS, lines(boxes, "{:.1f}")),
        (retraining.DETECTOR_HEADERS, lines(detectors, "{:.1f}")),
        (retraining.MASK_HEADERS, lines(masks, "{:.1f}")),
    ]
    more = {"pseudo boxes by seed": boxes, "retrained by seed": detectors, "masks by seed": masks}
    return tables, more, [PROTOCOL, *retraining.notes([one for _, one in found])]


def detector_figures(run: WeakRun) -> dict[str, list[float]]:
    """AP50 on the test images and CorLoc on the training images, of every row."""
    test, train = (_measure(run.plan, part) for part in ("test", "train"))
    chance = {
        part: random_detections(_proposals(run.plan, part), read_tags(run.plan.tags(part)))
        for part in ("test", "train")
    }
    figures = {RANDOM: [test(chance["test"]).AP50, train(chance["train"]).CorLoc]}
    for row in run.rows:
        boxes = [
            read_detections(path, read_tags(run.plan.tags(part)))
            for path, part in ((row.test, "test"), (row.train, "train"))
        ]
        figures[row.title] = [test(boxes[0]).AP50, train(boxes[1]).CorLoc]
    return figures


def _measure(plan: WeakPlan, part: str) -> Callable[[Detections], object]:
    tags: Tags = read_tags(plan.tags(part))
    truth = read_true_boxes(getattr(plan.source, part).truth["annotations"], tags)
    return lambda found: measure_detections(found, tags, truth)


def _proposals(plan: WeakPlan, part: str):
    return read_proposal_file(plan.proposal_file(part), read_images(plan.tags(part)))


def proposal_figures(run: WeakRun) -> dict[str, list[float]]:
    """Boxes an image and recalls of each kind of proposals on the test images."""
    rows = read_json(run.plan.output / "recall.json")["rows"]
    return {
        row["proposals"]: [row["boxes_per_image"], *row["recall"]]
        for row in rows
        if row["source"] == "all"
    }


def add_figures(total: dict[str, list], figures: dict[str, list[float]]) -> None:
    """Append the figures of one seed, a list a row."""
    for name, values in figures.items():
        total.setdefault(name, []).append(values)


def lines(figures: dict[str, list], form: str) -> list[list[str]]:
    """Rows of a table: the mean and, over several seeds, the standard deviation."""
    rows = []
    for name, by_seed in figures.items():
        cells = []
        for values in zip(*by_seed, strict=True):
            mean = form.format(statistics.fmean(values))
            several = len(values) > 1
            cells.append(f"{mean} ± {form.format(statistics.stdev(values))}" if several else mean)
        rows.append([name, *cells])
    return rows


def page(title: str, tables: list[Table], protocols: list[str], pictures: list[Path]) -> str:
    parts = [
        tabulate(rows, headers, tablefmt="html", disable_numparse=True) for headers, rows in tables
    ]
    images = [
        f'<h3>image {path.stem}</h3>\n<img src="{path.as_posix()}" alt="clues, proposals, '
        f'detections and truth of image {path.stem}">'
        for path in pictures
    ]
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>
body {{ font-family: sans-serif; max-width: 75em; margin: 2em auto; padding: 0 1em; }}
table {{ border-collapse: collapse; margin: 1.5em 0; }}
td, th {{ border-bottom: 1px solid #ccc; padding: 0.3em 0.8em; text-align: left; }}
img {{ max-width: 100%; }}
</style>
<h1>{html.escape(title)}</h1>
{chr(10).join(parts)}
{chr(10).join(f"<p>{html.escape(text)}</p>" for text in protocols)}
<h2>Test images: clues, proposals by source (grid blue, points red), detections of MIST,
truth</h2>
{chr(10).join(images)}
"""
