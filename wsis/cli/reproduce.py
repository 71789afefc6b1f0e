"""Evaluate a released or own file beside the reported figure.

    wsis reproduce --subset 10p --stage student
    wsis reproduce --subset 10p --stage student --split test-dev
    wsis reproduce --subset 10p --stage teacher --weights my_teacher.pth
    wsis reproduce --subset 10p --stage maskrefinenet
    wsis reproduce --subset 10p --stage pseudo_labels

teacher        detector AP (prompt none) and pseudo-label quality (prompt point), two figures of
               different meaning
maskrefinenet  quality of the teacher's labels of the weak images, before and after refinement
pseudo_labels  quality of the labels of the weak images against the full annotations
student        detector AP

The reported figures are the student's mask AP on test-dev, whose annotations are not public: with
--split test-dev the file that the evaluation server takes is written, and nothing is measured.
"""

import argparse
from pathlib import Path

import torch

from wsis.cli.flags import add_config, add_flag, add_job, job_of
from wsis.released import read_releases
from wsis.reproduce import SPLITS, STAGES, ReproduceSettings, format_table, reproduce


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--subset", required=True, choices=list(read_releases()))
    parser.add_argument("--stage", required=True, choices=STAGES)
    add_flag(
        parser,
        "--weights",
        help="an own file in place of the released one; for pseudo_labels a merged COCO file or "
        "records (.jsonl)",
    )
    parser.add_argument(
        "--checkpoints-dir",
        type=Path,
        metavar="FOLDER",
        default=Path("checkpoints"),
        help="released files (default: checkpoints)",
    )
    add_config(parser, help="of an own checkpoint (default: the released ones')")
    parser.add_argument("--split", choices=list(SPLITS), default="val2017")
    add_flag(parser, "--annotations", help="labels: all masks of train2017")
    add_flag(parser, "--weak-annotations", help="labels: the weak images and points")
    refining = parser.add_argument_group("maskrefinenet")
    refining.add_argument("--teacher", type=Path, metavar="FILE", help="default: the released one")
    add_flag(refining, "--records", help="masks of a teacher that has run already, in its place")
    add_flag(refining, "--image-root", help="default: COCO's train2017")
    add_flag(parser, "--output", help="folder (default: output/reproduce/SUBSET_STAGE_SPLIT)")
    parser.add_argument(
        "--name", help="in the name of the server's file; letters, digits, _, - and ."
    )
    add_job(parser, num_gpus=torch.cuda.device_count())


def run(args: argparse.Namespace) -> int:
    settings = ReproduceSettings(
        subset=args.subset,
        stage=args.stage,
        split=args.split,
        weights=args.weights,
        checkpoints=args.checkpoints_dir,
        config_file=args.config_file,
        annotations=args.annotations,
        weak_annotations=args.weak_annotations,
        teacher=args.teacher,
        records=args.records,
        image_root=args.image_root,
        name=args.name,
        output=args.output,
        overrides=tuple(args.opts),
    )
    rows = reproduce(settings, job_of(args))
    if rows is not None:
        print(format_table(args.subset, rows))
    return 0
