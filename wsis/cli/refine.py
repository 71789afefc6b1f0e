"""Refine the masks of prediction records.

    wsis refine --weights output/refiner/last.pth --records weak.jsonl \\
        --image-root coco/train2017 --output weak_refined.jsonl
    wsis refine --refiner sam --segmenter tiny --records weak.jsonl \\
        --image-root coco/train2017 --output weak_sam.jsonl

--refiner maskrefinenet is a network that was trained on masks like these; --refiner sam prompts a
segmenter with clicks, a box and a mask that it makes from each mask, as SAMRefiner does. A .json
file of records may also be a COCO file with masks, such as `wsis box-masks` writes.

The same command again continues a killed run and ends with the same bytes, also with another
number of processes. Images that cannot be read are left out and named; the exit code is then 1.
"""

import argparse

from weaklabels.shards import RecordShards
from wsis.cli.flags import add_flag, add_job, add_segmenter, any_gpu, job_of
from wsis.launcher import Job
from wsis.refine import REFINERS, RefineReport, RefineSettings, refine
from wsis.refine.driver import DEFAULT_BATCH_SIZE, MASKREFINENET

LISTED = 10  # unreadable images that the summary names


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--refiner", choices=REFINERS, default=MASKREFINENET)
    add_flag(parser, "--weights", help="checkpoint of MaskRefineNet")
    add_segmenter(parser.add_argument_group("of --refiner sam"), default=None)
    add_flag(
        parser,
        "--records",
        required=True,
        help="records (.jsonl), COCO results or a COCO file with masks (.json), or .pth",
    )
    add_flag(parser, "--image-root", required=True)
    add_flag(parser, "--output", required=True, help="refined records (.jsonl)")
    add_flag(
        parser,
        "--annotations",
        help="COCO file that names the images of .json and .pth records and, for weights that do "
        "not know them, the categories",
    )
    add_flag(
        parser,
        "--batch-size",
        default=DEFAULT_BATCH_SIZE,
        help=f"instances that go through the network at once (default: {DEFAULT_BATCH_SIZE})",
    )
    add_flag(parser, "--workers", default=2, help="threads beside the network (default: 2)")
    add_job(parser, num_gpus=any_gpu())
    # Old spelling of --num-gpus: cpu is 0, cuda is 1.
    parser.add_argument("--device", choices=("cpu", "cuda"), help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Refine; 1 where an image could not be read, and is therefore not in the output."""
    settings = RefineSettings(
        records=args.records,
        weights=args.weights,
        image_root=args.image_root,
        output=args.output,
        annotations=args.annotations,
        refiner=args.refiner,
        batch_size=args.batch_size,
        workers=args.workers,
        segmenter=args.segmenter,
        download=args.download,
    )
    if RecordShards(settings.output, {}).is_complete():
        print(f"{settings.output} is complete: nothing to do (remove it to make it again)")
        return 0
    report = refine(settings, _job(args))
    if report is None:
        return 0
    print_report(report, settings)
    return 1 if report.unreadable else 0


def _job(args: argparse.Namespace) -> Job:
    if args.device is not None:
        args.num_gpus = {"cpu": 0, "cuda": 1}[args.device]
    return job_of(args)


def print_report(report: RefineReport, settings: RefineSettings) -> None:
    print(
        f"{settings.output}: {report.instances} masks of {report.images} images; "
        f"{report.kept_priors} kept their prior mask, as nothing was found in them"
    )
    print(f"{report.wall_seconds:.1f} s, {report.network_seconds:.1f} s in the network")
    if report.unreadable:
        print(f"{len(report.unreadable)} images are left out; the same command again retries them:")
    for reason in report.unreadable[:LISTED]:
        print(f"  {reason}")
