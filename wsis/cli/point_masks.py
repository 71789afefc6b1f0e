"""Turn points into masks: each point prompts a segmenter, and no teacher is trained.

    wsis point-masks --annotations weak.json --image-root images --segmenter tiny \\
        --output weak.jsonl

Of the three masks of a point the one of the highest predicted IoU is taken, its predicted IoU is
the score, and its class is the point's. The records are as those of `wsis generate`. The same
command again continues a killed run and ends with the same bytes, also with another number of
processes. Points without a mask are counted and listed in OUTPUT.unmatched.json.
"""

import argparse

from weaklabels.shards import RecordShards
from wsis.cli.flags import add_flag, add_job, add_segmenter, any_gpu, job_of
from wsis.cli.generate import print_report
from wsis.pseudo_labels.point_masks import PointMaskSettings, segment_points


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_flag(parser, "--annotations", required=True, help="COCO file with the points")
    add_flag(parser, "--image-root", required=True)
    add_flag(parser, "--output", "-o", required=True, help="records to write (.jsonl)")
    add_segmenter(parser)
    add_job(parser, num_gpus=any_gpu())


def run(args: argparse.Namespace) -> int:
    """Write the records; 1 where an image could not be read, and is therefore not in the output."""
    settings = PointMaskSettings(
        annotations=args.annotations,
        image_root=args.image_root,
        output=args.output,
        segmenter=args.segmenter,
        download=args.download,
    )
    if RecordShards(settings.output, {}).is_complete():
        print(f"{settings.output} is complete: nothing to do (remove it to make it again)")
        return 0
    report = segment_points(settings, job_of(args))
    if report is None:
        return 0
    print_report(report, settings.output)
    return 1 if report.failures else 0
