"""Turn boxes into masks: each box prompts a segmenter.

    wsis box-masks --boxes boxes.json --image-root images --segmenter tiny --output masks.json

Boxes are a COCO file, such as `wsis pseudo-boxes` writes; the masks are one, too, in compressed
RLE. Boxes are tightened to their masks, those with an empty mask left out. A killed run goes on;
the file has the same bytes for any number of processes. --segmenter grabcut needs no weights.
"""

import argparse
from pathlib import Path

from weaksam.box_masks import PICKS, SINGLE
from wsis.box_masks import BoxMaskSettings, segment_boxes
from wsis.cli.flags import add_flag, add_job, add_segmenter, any_gpu, job_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "--boxes", type=Path, required=True, metavar="FILE", help="COCO file of boxes"
    )
    add_flag(parser, "--image-root", required=True)
    add_flag(parser, "--output", "-o", required=True, help="COCO file of masks to write")
    parser.add_argument(
        "--pick",
        choices=PICKS,
        default=SINGLE,
        help="single: the segmenter's one mask of a box; best_iou: of its three, the one whose "
        f"predicted IoU is highest (default: {SINGLE})",
    )
    add_segmenter(parser)
    add_job(parser, num_gpus=any_gpu())


def run(args: argparse.Namespace) -> int:
    """Write the masks and tell how many there are."""
    settings = BoxMaskSettings(
        boxes=args.boxes,
        image_root=args.image_root,
        output=args.output,
        segmenter=args.segmenter,
        pick=args.pick,
        download=args.download,
    )
    counts = segment_boxes(settings, job_of(args))
    if counts is not None:
        print(
            f"{args.output}: {counts.masks} masks on {counts.images} images; "
            f"{counts.empty} boxes left out, whose mask was empty"
        )
    return 0
