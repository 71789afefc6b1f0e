"""Measure pseudo labels against hidden full masks.

    wsis evaluate-labels --annotations instances_train2017.json --records weak.jsonl \\
        --weak-annotations instances_train2017_10p_w.json --output quality.json \\
        --image-root train2017 --sheet quality.png

Labels are prediction records (.jsonl) or a merged COCO file. Reported: COCO mask AP with the
labels' own scores and with scores forced to 1, and over all points: recall, IoU, boundary IoU.
AP of pseudo labels is not the AP of a detector: true points told the labels where to look.
"""

import argparse
from pathlib import Path

from weaklabels.coco import CocoFile
from weaklabels.evaluate import evaluate_labels, format_report, load_images, write_sheet
from weaklabels.files import write_json
from wsis.cli.flags import add_flag

OUTPUT = "output"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add_flag(parser, "--annotations", required=True, help="COCO file with all masks")
    add_flag(
        parser,
        "--records",
        required=True,
        help="records (.jsonl) or merged COCO file (.json) to judge",
    )
    add_flag(
        parser,
        "--weak-annotations",
        help="COCO file (*_w.json) of the images to judge and their points",
    )
    add_flag(parser, "--output", help="write the report as JSON")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet (.png)")
    add_flag(parser, "--image-root", help="folder of the images, for --sheet")
    parser.add_argument("--sheet-images", type=int, default=6, metavar="N")


def run(args: argparse.Namespace) -> int:
    """Print the report; write it and the contact sheet where asked to."""
    if args.sheet and (not args.image_root or args.sheet.suffix != ".png" or args.sheet_images < 1):
        raise ValueError("--sheet NAME.png needs --image-root, and --sheet-images of 1 or more")
    images = load_images(args.records, args.annotations, args.weak_annotations)
    categories = CocoFile(args.annotations).header["categories"]
    names = {category["id"]: str(category["name"]) for category in categories}
    report = evaluate_labels(images, names, str(args.records))
    if args.sheet:
        write_sheet(args.sheet, images, args.image_root, args.sheet_images)
    if args.output:
        write_json(args.output, report)
    print(format_report(report))
    return 0
