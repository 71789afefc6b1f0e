"""Measure a detector's boxes against true ones: AP as COCO has it, and CorLoc.

    wsis evaluate-detections --detections coco_instances_results.json --tags tags.json \\
        --annotations instances_train.json --output quality.json
    wsis evaluate-detections --boxes boxes.json --tags tags.json --voc VOC2007 --split trainval

Detections are records (.jsonl) or COCO results (.json) on the images of the tag file, which says on
which images CorLoc looks for a class. Of pseudo boxes (--boxes), which are to be labels, precision,
recall and F1 are measured.
"""

import argparse
from pathlib import Path

from weaklabels.files import write_json
from weaklabels.tags import read_tags
from weaksam.detection_quality import DetectionQuality, measure_detections, read_voc_truth
from weaksam.detections import read_chosen, read_detections
from weaksam.pseudo_box_quality import describe_quality, measure_boxes, read_true_boxes
from wsis.cli.flags import add_flag

OUTPUT = "output"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    found = parser.add_mutually_exclusive_group(required=True)
    found.add_argument("--detections", type=Path, metavar="FILE", help="records or COCO results")
    found.add_argument("--boxes", type=Path, metavar="FILE", help="of `wsis pseudo-boxes`")
    add_flag(parser, "--tags", required=True)
    add_flag(parser, "--annotations", help="COCO file of the true boxes")
    parser.add_argument("--voc", type=Path, metavar="FOLDER", help="true boxes of VOC2007 or alike")
    parser.add_argument("--split", metavar="NAME", help="VOC's list in ImageSets/Main")
    add_flag(parser, "--output", help="report to write (.json)")


def run(args: argparse.Namespace) -> int:
    """Print the figures; write them where asked to."""
    if (args.annotations is None) == (args.voc is None) or (args.voc is None) != (
        args.split is None
    ):
        raise ValueError("true boxes: give --annotations, or --voc with --split")
    tags = read_tags(args.tags)
    found = read_chosen(args.boxes, tags) if args.boxes else read_detections(args.detections, tags)
    if args.annotations is not None:
        truth = read_true_boxes(args.annotations, tags)
    else:
        truth = read_voc_truth(args.voc, args.split, tags)
    if args.boxes:
        quality = measure_boxes(found, truth, len(tags.images))
        described = describe_quality(quality)
    else:
        quality = measure_detections(found, tags, truth)
        described = format_quality(quality)
    if args.output:
        write_json(args.output, quality.as_json(), indent=1)
    print(described)
    return 0


def format_quality(quality: DetectionQuality) -> str:
    """The figures in a line, and their protocol in another."""
    figures = {name: getattr(quality, name) for name in ("AP", "AP50", "AP75", "CorLoc")}
    shown = [f"{n} {'none' if v is None else format(v, '.1f')}" for n, v in figures.items()]
    return (
        f"{', '.join(shown)} ({quality.objects} objects on {quality.images} images)\n"
        f"protocol: {quality.protocol}"
    )
