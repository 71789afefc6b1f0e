"""Split a COCO instance file into strong labels (masks) and weak labels (one point per instance).

    wsis split --annotations annotations/instances_train2017.json --percent 5 10

writes instances_train2017_10p_s.json (10 percent of the images, annotations unchanged) and
instances_train2017_10p_w.json (the other images; no mask, box or area, nothing but points) beside
the file. The same seed gives the same bytes.
"""

import argparse
import sys
from pathlib import Path

from weaklabels.coco import CocoFile, InvalidAnnotation
from weaklabels.points import point_rule
from weaklabels.split import (
    MASK_SECONDS,
    POINT_SECONDS,
    SplitSettings,
    describe_split,
    split_coco,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("file", nargs="?", type=Path, help=argparse.SUPPRESS)  # until 0.3
    parser.add_argument("--annotations", type=Path, help="COCO instance file with masks")
    amount = parser.add_mutually_exclusive_group(required=True)
    amount.add_argument(
        "--percent", type=float, nargs="+", metavar="P", help="percent of the images, e.g. 0.5 10"
    )
    amount.add_argument("--images", type=int, nargs="+", metavar="N", help="number of images")
    parser.add_argument("--output", type=Path, help="folder; default: beside the annotation file")
    parser.add_argument("--out-dir", type=Path, dest="output", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fold", type=int, default=0, help="0, 1, ...: disjoint strong sets")
    parser.add_argument("--stratify", action="store_true", help="every class keeps its share")
    parser.add_argument(
        "--points",
        type=_rule_name,
        default="centroid",
        metavar="RULE",
        help="centroid | inside | random | jitter:SIGMA (pixels)",
    )
    parser.add_argument(
        "--skip-invalid", action="store_true", help="list invalid annotations and leave them out"
    )
    parser.add_argument("--mask-seconds", type=float, default=MASK_SECONDS, metavar="S")
    parser.add_argument("--point-seconds", type=float, default=POINT_SECONDS, metavar="S")


def run(args: argparse.Namespace) -> int:
    """Write the files and tell what is in them."""
    path = args.annotations or args.file
    if path is None or (args.annotations and args.file):
        raise ValueError("give one annotation file, with --annotations")
    settings = SplitSettings(
        percents=tuple(args.percent or ()),
        images=tuple(args.images or ()),
        seed=args.seed,
        fold=args.fold,
        stratify=args.stratify,
        points=args.points,
    )
    source = CocoFile(path, args.skip_invalid)
    try:
        splits = split_coco(source, args.output or path.parent, settings)
    except InvalidAnnotation as error:
        raise ValueError(
            f"{error}; --skip-invalid lists such annotations and leaves them out"
        ) from error
    for problem in source.skipped:
        print(f"skipped: {problem}", file=sys.stderr)
    if source.skipped:
        print(f"{len(source.skipped)} invalid annotations skipped", file=sys.stderr)
    for split in splits:
        print(describe_split(split, len(source.images), args.mask_seconds, args.point_seconds))
    return 0


def _rule_name(text: str) -> str:
    try:
        point_rule(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text
