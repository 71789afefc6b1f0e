"""Train or evaluate a network from a config file.

    wsis train --config-file SOLOv2/R50_3x.yaml --num-gpus 8
    wsis train --config-file ... --eval-only MODEL.WEIGHTS output/model_final.pth

Datasets are registered names or `name=annotations.json:image_folder`. A killed run continues with
--resume; with SEED >= 0 it ends with the weights of an uninterrupted one. The command line is
Detectron2's.
"""

import argparse

from detectron2.engine import default_argument_parser
from wsis.cli.flags import job_of
from wsis.launcher import launch
from wsis.training import TrainingSettings, train

RESUME = "--resume"


def make_parser() -> argparse.ArgumentParser:
    """Detectron2's parser: nothing is added and nothing is left out."""
    return default_argument_parser()


def settings_of(args: argparse.Namespace) -> TrainingSettings:
    """The settings of a command line."""
    return TrainingSettings(
        config_file=args.config_file,
        overrides=tuple(args.opts),
        eval_only=args.eval_only,
        resume=args.resume,
        num_gpus=args.num_gpus,
    )


def run(args: argparse.Namespace) -> int:
    launch(job_of(args), train, settings_of(args))
    return 0
