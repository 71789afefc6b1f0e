"""Make boxes that may hold an object, join them, and measure their recall.

    wsis proposals grid --tags tags.json --image-root images --output search.npz \\
        --kind selective_search
    wsis proposals points --tags tags.json --image-root images --output sam.npz \\
        --segmenter tiny --coarse points/points_coarse.npz
    wsis proposals merge --tags tags.json --proposals search.npz sam.npz --output both.npz
    wsis proposals recall --tags tags.json --annotations instances.json \\
        --proposals both=both.npz search=search.npz

grid prompts a segmenter on a grid, or needs none (--kind); points prompts it with clue points, too,
and encodes an image once for all. A killed run goes on; the file has the same bytes for any number
of processes. Images without a box are listed in *.skipped.json. DATASETS.PROPOSAL_FILES_TRAIN reads
the files. merge reads the released pickles (.pkl), too.
"""

import argparse
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from weaklabels.locks import output_lock
from weaksam.proposals.make import (
    Inputs,
    Method,
    PromptedProposals,
    ProposalCounts,
    merge_proposals,
)
from weaksam.proposals.prompts import POINT_SOURCES, Clicks, Grid, Prompting
from weaksam.proposals.recall import RecallSettings
from weaksam.proposals.without_prompts import RandomBoxes, SelectiveSearch
from weaksam.segmenters.spec import FORMS
from wsis.cli.flags import add_flag, add_job, any_gpu, job_of
from wsis.proposals import ProposalSettings, RecallReportSettings, propose, report_recall

SEGMENTER, SEARCH, RANDOM = "segmenter", "selective_search", "random"
GRID_FLAGS = ("grid", "min_predicted_iou", "min_stability", "grid_nms")
KIND_FLAGS = {  # those that each kind reads; the others are refused
    SEGMENTER: ("segmenter", "download", *GRID_FLAGS),
    SEARCH: ("mode", "max_side", "min_side"),
    RANDOM: ("count", "seed"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The commands below this one."""
    commands = parser.add_subparsers(dest="step", metavar="grid|points|merge|recall", required=True)
    for name, (add, function) in STEPS.items():
        add(commands.add_parser(name, help=function.__doc__))


def run(args: argparse.Namespace) -> int:
    """Run one of the steps."""
    return STEPS[args.step][1](args)


def add_images(parser: argparse.ArgumentParser) -> None:
    add_flag(parser, "--tags", required=True, help="tag file; it lists the images, no tag is used")
    add_flag(parser, "--image-root", required=True)
    add_flag(parser, "--output", required=True, help="proposal file (.npz)")


def add_segmenter(parser: argparse.ArgumentParser) -> None:
    usual = Grid()
    group = parser.add_argument_group("segmenter")
    group.add_argument("--segmenter", help=f"one of {FORMS} (default: tiny)")
    group.add_argument(
        "--download", action="store_true", default=None, help="let transformers fetch a model"
    )
    group.add_argument(
        "--grid", type=int, metavar="N", help=f"clicks a side (default: {usual.points_per_side})"
    )
    for name, default, text in (
        ("--min-predicted-iou", usual.min_predicted_iou, "exceeded by the grid's masks"),
        ("--min-stability", usual.min_stability, "reached by the grid's masks"),
        ("--grid-nms", usual.nms, "IoU above which the grid's boxes are suppressed"),
    ):
        group.add_argument(name, type=float, metavar="X", help=f"{text} (default: {default})")


def add_grid(parser: argparse.ArgumentParser) -> None:
    add_images(parser)
    parser.add_argument("--kind", choices=KIND_FLAGS, default=SEGMENTER)
    add_segmenter(parser)
    search, chance = SelectiveSearch(), RandomBoxes()
    group = parser.add_argument_group(SEARCH)
    group.add_argument("--mode", choices=("fast", "quality"), help=f"(default: {search.mode})")
    group.add_argument(
        "--max-side", type=int, help=f"larger images are reduced (default: {search.max_side})"
    )
    group.add_argument(
        "--min-side", type=float, help=f"of boxes, pixels (default: {search.min_side:g})"
    )
    group = parser.add_argument_group(RANDOM)
    group.add_argument("--count", type=int, help=f"boxes an image (default: {chance.count})")
    add_flag(group, "--seed")
    add_job(parser, num_gpus=any_gpu())


def grid(args: argparse.Namespace) -> int:
    """Make proposals without clue points: a grid of clicks, selective search or random boxes."""
    return make(args, method_of(args), {})


def method_of(args: argparse.Namespace) -> Method:
    """How `grid` makes boxes; flags of other kinds are refused."""
    for kind, names in KIND_FLAGS.items():
        foreign = [n for n in names if kind != args.kind and getattr(args, n) is not None]
        if foreign:
            raise ValueError(
                f"--{foreign[0].replace('_', '-')} is for --kind {kind}, this is {args.kind}"
            )
    if args.kind == SEGMENTER:
        return prompted(args, Prompting(grid_of(args)))
    given = {n: getattr(args, n) for n in KIND_FLAGS[args.kind] if getattr(args, n) is not None}
    return {SEARCH: SelectiveSearch, RANDOM: RandomBoxes}[args.kind](**given)


def prompted(args: argparse.Namespace, prompting: Prompting) -> PromptedProposals:
    return PromptedProposals(
        args.segmenter or PromptedProposals.segmenter, prompting, download=bool(args.download)
    )


def grid_of(args: argparse.Namespace) -> Grid:
    fields = zip(
        ("points_per_side", "min_predicted_iou", "min_stability", "nms"), GRID_FLAGS, strict=True
    )
    return Grid(**{f: getattr(args, n) for f, n in fields if getattr(args, n) is not None})


def add_points(parser: argparse.ArgumentParser) -> None:
    add_images(parser)
    usual = Clicks()
    for source in POINT_SOURCES:
        parser.add_argument(f"--{source}", type=Path, metavar="FILE", help=f"{source} points")
    add_segmenter(parser)
    group = parser.add_argument_group("clicks on points")
    group.add_argument("--no-grid", action="store_true", help="points alone")
    group.add_argument(
        "--masks",
        type=int,
        nargs="+",
        choices=(0, 1, 2),
        default=usual.masks,
        help="which of three masks are kept, finest first (default: 1 2)",
    )
    group.add_argument(
        "--click-min-predicted-iou", type=float, default=usual.min_predicted_iou, metavar="X"
    )
    group.add_argument(
        "--click-min-stability", type=float, default=usual.min_stability, metavar="X"
    )
    group.add_argument(
        "--cross-nms",
        type=float,
        default=usual.cross_nms,
        metavar="X",
        help="IoU above which a later box of cross is suppressed (default: 0.9)",
    )
    add_job(parser, num_gpus=any_gpu())


def points(args: argparse.Namespace) -> int:
    """Make proposals from clue points and, without --no-grid, a grid of clicks."""
    files = {s: getattr(args, s) for s in POINT_SOURCES if getattr(args, s) is not None}
    if not files:
        raise ValueError("no points: give --coarse, --fine or --cross; `grid` needs none")
    if args.no_grid and any(getattr(args, name) is not None for name in GRID_FLAGS):
        raise ValueError("--no-grid makes no grid, so the grid's settings have no place here")
    clicks = Clicks(
        masks=tuple(args.masks),
        min_predicted_iou=args.click_min_predicted_iou,
        min_stability=args.click_min_stability,
        cross_nms=args.cross_nms,
    )
    prompting = Prompting(None if args.no_grid else grid_of(args), clicks)
    return make(args, prompted(args, prompting), files)


def make(args: argparse.Namespace, method: Method, files: dict[str, Path]) -> int:
    inputs = Inputs(args.tags, args.image_root, files)
    counts = propose(ProposalSettings(inputs, args.output, method), job_of(args))
    if counts is not None:
        print_counts(args.output, counts)
    return 0


def print_counts(output: Path, counts: ProposalCounts) -> None:
    sources = ", ".join(
        f"{name} {number / counts.images:.1f}" for name, number in counts.by_source.items()
    )
    print(f"{output}: {counts.boxes / counts.images:.1f} boxes an image ({sources})")
    if counts.empty_masks_dropped:
        print(f"{counts.empty_masks_dropped} empty masks dropped")
    if counts.without:
        print(f"{len(counts.without)} of {counts.images} images have no box")


def add_merge(parser: argparse.ArgumentParser) -> None:
    add_flag(parser, "--tags", required=True, help="tag file; it lists the images, no tag is used")
    parser.add_argument(
        "--proposals",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE",
        help="proposal files (.npz) and released pickles (.pkl), in order",
    )
    add_flag(parser, "--output", required=True, help="proposal file (.npz)")


def merge(args: argparse.Namespace) -> int:
    """Join the boxes of several files image by image."""
    with output_lock(args.output):
        print_counts(args.output, merge_proposals(args.proposals, args.tags, args.output))
    return 0


def add_recall(parser: argparse.ArgumentParser) -> None:
    usual = RecallSettings()
    add_flag(parser, "--tags", required=True, help="tag file; it lists the images, no tag is used")
    parser.add_argument(
        "--proposals", type=named_file, nargs="+", required=True, metavar="NAME=FILE"
    )
    add_flag(parser, "--annotations", help="COCO file of the true boxes")
    parser.add_argument("--voc", type=Path, metavar="FOLDER", help="true boxes of VOC2007 or alike")
    parser.add_argument("--split", metavar="NAME", help="VOC's list in ImageSets/Main")
    parser.add_argument(
        "--thresholds",
        type=float,
        nargs="+",
        default=usual.thresholds,
        metavar="IOU",
        help="(default: 0.5 0.7 0.9)",
    )
    add_flag(parser, "--seed", default=usual.random_seed, help="of the random boxes (default: 0)")
    add_flag(parser, "--output", help="report to write (.json)")


def recall(args: argparse.Namespace) -> int:
    """Measure how many true boxes proposals find; for evaluation only."""
    names = [name for name, _ in args.proposals]
    if len(set(names)) < len(names):
        raise ValueError(f"--proposals {' '.join(names)}: each name once")
    settings = RecallReportSettings(
        proposals=dict(args.proposals),
        images=args.tags,
        annotations=args.annotations,
        voc=args.voc,
        split=args.split,
        recall=RecallSettings(tuple(args.thresholds), args.seed),
        output=args.output,
    )
    with nullcontext() if args.output is None else output_lock(args.output):
        print_recall(report_recall(settings))
    return 0


def named_file(text: str) -> tuple[str, Path]:
    """NAME=FILE, or a file that is its own name."""
    name, equals, path = text.partition("=")
    return (name, Path(path)) if equals else (Path(text).stem, Path(text))


def print_recall(report: dict[str, Any]) -> None:
    """A line a file and source; in brackets with difficult objects where there are some."""
    print(
        f"{report['images']} images, {report['objects']} objects and "
        f"{report['difficult_objects']} difficult ones; {report['protocol']}"
    )
    width = max(len(f"{row['proposals']} {row['source']}") for row in report["rows"])
    heads = "".join(f"{f'recall @{t:g}':>17}" for t in report["thresholds"])
    print(f"{'':{width}}  boxes/image{heads}")
    for row in report["rows"]:
        name = f"{row['proposals']} {row['source']}"
        pairs = zip(row["recall"], row["recall_with_difficult"], strict=True)
        cells = "".join(f"{f'{shown(a)} ({shown(b)})':>17}" for a, b in pairs)
        print(f"{name:{width}}  {row['boxes_per_image']:11.1f}{cells}")


def shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


STEPS = {
    "grid": (add_grid, grid),
    "points": (add_points, points),
    "merge": (add_merge, merge),
    "recall": (add_recall, recall),
}
