"""Train a classifier on image tags, find points where it sees classes, cluster them.

    wsis clues train --network lite0 --tags tags.json --image-root images --output classifier
    wsis clues points --weights classifier/classifier.pth --tags tags.json --image-root images \\
        --output points
    wsis clues cluster --points points/points_cross.npz --output points/clusters.npz

The same command again goes on after a kill; when all is done, it does nothing. Points are the same
bytes for any number of processes. Images without a point are listed in *.skipped.json.
"""

import argparse
import re
from pathlib import Path

from weaklabels.locks import output_lock
from weaksam.clues import (
    RELEASED_LAYERS,
    ClusterSettings,
    PeakSettings,
    PointSettings,
    cluster_points,
)
from weaksam.clues.boxes import BoxSettings
from weaksam.clues.cam import LOSSES
from weaksam.clues.extract import LABELS, SOURCES
from weaksam.clues.networks import NETWORKS, NetworkSettings, schedule_of
from wsis.cli.flags import add_flag, add_job, any_gpu, job_of
from wsis.clues import (
    ClassifierSettings,
    ClueBoxSettings,
    ClueReport,
    ClueSettings,
    find_boxes,
    find_points,
    train_tag_classifier,
)
from wsis.launcher import Job

SCHEDULE = ("epochs", "batch_size", "learning_rate", "size", "seed", "workers")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The commands below this one."""
    commands = parser.add_subparsers(dest="step", metavar="|".join(STEPS), required=True)
    for name, (add, function) in STEPS.items():
        add(commands.add_parser(name, help=function.__doc__))


def run(args: argparse.Namespace) -> int:
    """Run one of the steps."""
    return STEPS[args.step][1](args)


def add_train(parser: argparse.ArgumentParser) -> None:
    add_flag(parser, "--tags", required=True)
    add_flag(parser, "--image-root", required=True)
    add_flag(parser, "--output", required=True, help="folder: classifier.pth, metrics.json")
    parser.add_argument(
        "--network",
        choices=NETWORKS,
        default="weaktr",
        help="weaktr: DeiT-S with attention; lite0: EfficientNet-Lite0, for photographs on a CPU; "
        "resnet: a small one for simple scenes; cam: any backbone (default: weaktr)",
    )
    parser.add_argument(
        "--init", help="first weights: file or timm name of a DeiT; imagenet (lite0); none"
    )
    parser.add_argument("--loss", choices=LOSSES, help="of CAM classifiers")
    parser.add_argument("--feature", help="output of the backbone that is classified (cam)")
    add_flag(parser, "--val-tags", help="choose the epoch by the class AP on these images")
    add_flag(parser, "--val-image-root")
    group = parser.add_argument_group("schedule", "the defaults depend on the network")
    group.add_argument("--epochs", type=int, metavar="N")
    add_flag(group, "--batch-size", help="images of a step")
    group.add_argument("--learning-rate", type=float, metavar="RATE", help="at its peak")
    group.add_argument("--size", type=int, metavar="PIXELS", help="side of the network's input")
    group.add_argument("--amp", action="store_true", help="mixed precision (GPU)")
    add_flag(group, "--seed")
    add_flag(group, "--workers")
    add_flag(group, "--num-gpus", default=any_gpu(), help="1, or 0 for the CPU")
    parser.add_argument(
        "opts", nargs="*", metavar="KEY VALUE", help="config of the backbone of --network cam"
    )


def train(args: argparse.Namespace) -> int:
    """Train a classifier on image tags."""
    changes = {name: getattr(args, name) for name in SCHEDULE if getattr(args, name) is not None}
    settings = ClassifierSettings(
        tags=args.tags,
        image_root=args.image_root,
        output=args.output,
        network=NetworkSettings(args.network, args.init, args.loss, args.feature, tuple(args.opts)),
        schedule=schedule_of(args.network, amp=args.amp, **changes),
        val_tags=args.val_tags,
        val_image_root=args.val_image_root,
    )
    result = train_tag_classifier(settings, Job(num_gpus=args.num_gpus))
    metrics = result.metrics
    chosen = f", class AP {metrics['class_AP']:.3f}" if "class_AP" in metrics else ""
    print(f"{result.checkpoint}: epoch {metrics['epoch']}, loss {metrics['loss']:.4f}{chosen}")
    return 0


def add_points(parser: argparse.ArgumentParser) -> None:
    usual = PointSettings()
    add_search(parser)
    add_flag(parser, "--output", required=True, help="folder: points_SOURCE.npz")
    add_labels(parser)
    parser.add_argument(
        "--sources", nargs="+", choices=SOURCES, help="maps (default: all of the classifier)"
    )
    parser.add_argument(
        "--layers",
        type=layers,
        default=usual.layers,
        help="of cross: 5-12 (default), a list such as 9,10, or released (9,10)",
    )
    parser.add_argument(
        "--scales", type=float, nargs="+", default=usual.scales, help="(default: 1.0 0.8 1.2)"
    )
    parser.add_argument("--no-flip", action="store_true", help="leave mirror images out")
    parser.add_argument("--kernel", type=int, default=usual.peaks.kernel, help="(default: 17)")
    parser.add_argument(
        "--cross-kernel", type=int, default=usual.cross_peaks.kernel, help="(default: 129)"
    )
    parser.add_argument(
        "--threshold", type=float, default=usual.peaks.threshold, help="(default: 0.9)"
    )
    add_job(parser, num_gpus=any_gpu())


def add_search(parser: argparse.ArgumentParser) -> None:
    add_flag(parser, "--weights", required=True, help="classifier.pth of `train`, or a WeakTr file")
    add_flag(parser, "--tags", required=True, help="tag file; its images are searched")
    add_flag(parser, "--image-root", required=True)


def add_labels(parser: argparse.ArgumentParser) -> None:
    default = PointSettings.labels
    parser.add_argument(
        "--labels",
        choices=LABELS,
        default=default,
        help="search for an image's tags, or for the classes that the network finds "
        f"(default: {default})",
    )
    parser.add_argument(
        "--allow-gt-labels",
        action="store_true",
        help="use given tags on a split for evaluation, too; the files say so",
    )


def points(args: argparse.Namespace) -> int:
    """Find points where a classifier sees classes."""
    settings = ClueSettings(
        weights=args.weights,
        tags=args.tags,
        image_root=args.image_root,
        output=args.output,
        points=PointSettings(
            sources=tuple(args.sources) if args.sources else None,
            scales=tuple(args.scales),
            flip=not args.no_flip,
            peaks=PeakSettings(args.kernel, args.threshold),
            cross_peaks=PeakSettings(args.cross_kernel, args.threshold),
            layers=args.layers,
            labels=args.labels,
            allow_gt_labels=args.allow_gt_labels,
        ),
    )
    report = find_points(settings, job_of(args))
    if report is not None:
        print_report(report)
    return 0


def print_report(report: ClueReport) -> None:
    for source, path in report.files.items():
        mean = report.points[source] / report.images
        print(
            f"{path}: {mean:.2f} points an image; {report.without[source]} of {report.images} "
            "images have none"
        )


def add_boxes(parser: argparse.ArgumentParser) -> None:
    usual = BoxSettings()
    add_search(parser)
    add_flag(parser, "--output", required=True, help="COCO results (.json)")
    add_labels(parser)
    parser.add_argument(
        "--threshold",
        type=float,
        default=usual.threshold,
        help=f"share of a map's range that belongs to the object (default: {usual.threshold})",
    )
    add_job(parser, num_gpus=any_gpu())


def boxes(args: argparse.Namespace) -> int:
    """Put one box around what each class map shows: a baseline without a detector."""
    maps = PointSettings(
        sources=("coarse",), labels=args.labels, allow_gt_labels=args.allow_gt_labels
    )
    settings = ClueBoxSettings(
        weights=args.weights,
        tags=args.tags,
        image_root=args.image_root,
        output=args.output,
        boxes=BoxSettings(maps, args.threshold),
    )
    find_boxes(settings, job_of(args))
    return 0


def add_cluster(parser: argparse.ArgumentParser) -> None:
    usual = ClusterSettings()
    parser.add_argument("--points", type=Path, required=True, metavar="FILE", help="points (.npz)")
    add_flag(parser, "--output", required=True, help="cluster centers (.npz)")
    parser.add_argument(
        "--points-per-cluster",
        type=int,
        default=usual.points_per_cluster,
        metavar="N",
        help=f"n points give n // N clusters (default: {usual.points_per_cluster})",
    )
    add_flag(parser, "--seed", default=usual.seed)


def cluster(args: argparse.Namespace) -> int:
    """Cluster the points of each image into fewer ones."""
    settings = ClusterSettings(points_per_cluster=args.points_per_cluster, seed=args.seed)
    with output_lock(args.output):
        result = cluster_points(args.points, args.output, settings)
    counts = [len(image) for image in result.points]
    print(
        f"{args.output}: {sum(counts) / max(len(counts), 1):.2f} points an image; "
        f"{counts.count(0)} of {len(counts)} images have none"
    )
    return 0


def layers(text: str) -> tuple[int, ...]:
    """Attention layers, from 1: "released", a range "5-12", or a list "9,10"."""
    if text == "released":
        return RELEASED_LAYERS
    ends = re.fullmatch(r"(\d+)-(\d+)", text)
    if ends:
        return tuple(range(int(ends[1]), int(ends[2]) + 1))
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise argparse.ArgumentTypeError(f"{text!r}; expected 5-12, 9,10 or released")
    return tuple(map(int, text.split(",")))


STEPS = {
    "train": (add_train, train),
    "points": (add_points, points),
    "cluster": (add_cluster, cluster),
    "boxes": (add_boxes, boxes),
}
