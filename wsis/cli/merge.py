"""Merge strong labels and pseudo labels into one COCO file, the student's training set.

    wsis merge --annotations a_s.json --weak-annotations a_w.json --records weak.jsonl \\
        --output a_sw.json

Strong annotations are kept as they are, pseudo ones follow in the records' order; ids are 1..N.
Images are the strong ones, then the weak ones, with or without a surviving label. Each weak image
needs a record, so that the file of a run that was cut off is noticed.
"""

import argparse
import math

from weaklabels.merge import merge_labels
from wsis.cli.flags import add_flag

OUTPUT = "output"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add_flag(
        parser,
        "--annotations",
        help="COCO file with full masks (*_s.json); without it there are pseudo labels alone",
    )
    add_flag(parser, "--records", required=True, help="prediction records of weak images (.jsonl)")
    add_flag(
        parser,
        "--weak-annotations",
        help="COCO file with points (*_w.json); its images all enter the merged file; "
        "without it the weak images are those of the records",
    )
    add_flag(parser, "--output", required=True, help="merged COCO file to write (*_sw.json)")
    parser.add_argument(
        "--min-score", type=float, default=-math.inf, help="leave out pseudo labels below it"
    )
    parser.add_argument(
        "--allow-missing",
        action="store_true",
        help="weak images without a record enter without labels",
    )


def run(args: argparse.Namespace) -> int:
    """Write the merged file and tell what is in it."""
    counts = merge_labels(
        args.annotations,
        args.records,
        args.output,
        args.weak_annotations,
        args.min_score,
        args.allow_missing,
    )
    print(
        f"{args.output}: {counts.strong_images} strong + {counts.weak_images} weak images, "
        f"{counts.strong} strong + {counts.pseudo} pseudo labels; left out: "
        f"{counts.low_scores} below the minimum score, {counts.empty_masks} empty"
    )
    return 0
