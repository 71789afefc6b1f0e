"""Choose the boxes that a detector learns from among a weak detector's.

    wsis pseudo-boxes --detections train.jsonl --tags tags.json --output boxes.json \\
        --rule adaptive --keep 0.3 --contain 0.85 --truth instances_train.json

Of each class that an image is tagged with, "adaptive" keeps the best box, those whose normalized
score reaches --keep, and none that lies in another of its class; "top1" the best one, "topk" the
best --count. Detections are records (.jsonl) or COCO results (.json) on the images of the tags.
"""

import argparse
from pathlib import Path

from weaklabels.tags import read_tags
from weaklabels.voc import read_image_set
from weaksam.detections import read_detections
from weaksam.pseudo_box_quality import describe_quality, measure_boxes, read_true_boxes
from weaksam.pseudo_boxes import (
    NORMALIZATIONS,
    TIES,
    AdaptiveRule,
    Rule,
    TopRule,
    leave_out,
    origin_of,
    select_boxes,
    write_pseudo_boxes,
)
from wsis.cli.flags import add_flag

OUTPUT = "output"
RULE_FLAGS = {  # those that each rule reads
    "adaptive": ("keep", "contain", "normalize", "tie"),
    "top1": (),
    "topk": ("count",),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    usual = AdaptiveRule()
    parser.add_argument(
        "--detections", type=Path, required=True, metavar="FILE", help="records or COCO results"
    )
    parser.add_argument(
        "--tags", type=Path, required=True, metavar="FILE", help="the classes of each image"
    )
    add_flag(parser, "--output", "-o", required=True, help="COCO file of boxes to write")
    parser.add_argument("--rule", choices=RULE_FLAGS, default="adaptive")
    parser.add_argument(
        "--keep", type=float, help=f"least normalized score (adaptive; default: {usual.keep:g})"
    )
    parser.add_argument(
        "--contain",
        type=float,
        help="share of a box inside another from which on it is dropped (adaptive; default: "
        f"{usual.contain:g})",
    )
    parser.add_argument(
        "--normalize",
        choices=NORMALIZATIONS,
        help="scores s of a class, from m to M: range s/(M-m), max s/M, minmax (s-m)/(M-m) "
        f"(adaptive; default: {usual.normalize})",
    )
    parser.add_argument(
        "--tie",
        choices=TIES,
        help="which of two boxes that contain each other stays; reference: none (adaptive; "
        f"default: {usual.tie})",
    )
    parser.add_argument("--count", type=int, metavar="N", help="boxes of each class (topk)")
    parser.add_argument(
        "--leave-out",
        type=Path,
        metavar="LIST",
        help="names of images, one a line and without suffix, that the file shall not have, such "
        "as those of VOC2012/ImageSets/Segmentation/val.txt, which segmenters are measured on",
    )
    parser.add_argument(
        "--truth",
        type=Path,
        metavar="FILE",
        help="COCO file of true boxes: report precision, recall and F1. Nothing else is done with "
        "it",
    )


def rule_of(args: argparse.Namespace) -> Rule:
    """The rule of a command line; ValueError where a flag is of another rule."""
    given = {
        name: getattr(args, name)
        for flags in RULE_FLAGS.values()
        for name in flags
        if getattr(args, name) is not None
    }
    if unread := sorted(set(given) - set(RULE_FLAGS[args.rule])):
        raise ValueError(f"--{unread[0]} does nothing with --rule {args.rule}: leave it out")
    if args.rule == "topk" and "count" not in given:
        raise ValueError("--rule topk needs --count, the boxes of each class")
    return AdaptiveRule(**given) if args.rule == "adaptive" else TopRule(**given)


def run(args: argparse.Namespace) -> int:
    """Write the boxes; tell what was kept, and with --truth how good that is."""
    rule = rule_of(args)
    tags = read_tags(args.tags)
    detections = read_detections(args.detections, tags)
    if args.leave_out:
        detections, tags = leave_out(detections, tags, set(read_image_set(str(args.leave_out))))
    truth = read_true_boxes(args.truth, tags) if args.truth else None
    found = select_boxes(detections, tags, rule)
    origin = origin_of(rule, args.detections, args.tags, args.leave_out)
    counts = write_pseudo_boxes(args.output, found, tags, origin)
    print(
        f"{args.output}: {counts['boxes']} boxes on {counts['images']} images, "
        f"{counts['images_without_boxes']} of them without; dropped: "
        + ", ".join(f"{count} {reason}" for reason, count in counts["dropped"].items())
    )
    if counts["tags_without_boxes"]:
        by_class = counts["tags_without_boxes_by_class"].items()
        print(
            f"{counts['tags_without_boxes']} of {counts['tags']} tags have no box: "
            + ", ".join(f"{name} {count}" for name, count in by_class)
        )
    if truth is not None:
        print(describe_quality(measure_boxes(found.detections, truth, len(tags.images))))
    return 0
