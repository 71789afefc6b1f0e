"""Train MaskRefineNet on a teacher's masks of the strong images.

    wsis train-refiner --annotations instances_train2017_10p_s.json --image-root coco/train2017 \\
        --records strong_1.jsonl strong_2.jsonl --output output/refiner

By default training is the reference's, `--recipe paper`; `--recipe ours` and single options change
it. OUTPUT gets last.pth, best.pth and metrics.json. The same command with --resume continues a
killed run.
"""

import argparse

from maskrefinenet.train_command import add_arguments as add_training
from maskrefinenet.train_command import settings_of
from wsis.cli.flags import add_job, any_gpu, job_of
from wsis.refine.maskrefinenet import train_refiner

RESUME = "--resume"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_training(parser)
    add_job(parser, num_gpus=any_gpu())


def run(args: argparse.Namespace) -> int:
    train_refiner(settings_of(args), job_of(args))
    return 0
