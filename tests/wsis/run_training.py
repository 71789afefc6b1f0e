"""Train as tools/train_net.py does and write the total loss of each iteration to losses.json.

A program that tests start with the arguments of tools/train_net.py.
"""

import json
import os
import sys

from detectron2.config import CfgNode
from detectron2.engine import hooks
from detectron2.utils import comm
from wsis.cli.flags import job_of
from wsis.cli.main import make_parser
from wsis.cli.train import settings_of
from wsis.launcher import launch
from wsis.training import Trainer, TrainingSettings, prepared


def run(settings: TrainingSettings) -> None:
    with prepared(settings) as cfg:
        train(cfg, settings)


def train(cfg: CfgNode, settings: TrainingSettings) -> None:
    trainer = Trainer(cfg)
    losses = []

    def record(t):
        if comm.is_main_process():
            losses.append(t.storage.latest()["total_loss"][0])

    trainer.register_hooks([hooks.CallbackHook(after_step=record)])
    trainer.resume_or_load(resume=settings.resume)
    trainer.train()
    if comm.is_main_process():
        with open(os.path.join(cfg.OUTPUT_DIR, "losses.json"), "w", encoding="utf-8") as file:
            json.dump(losses, file)


def main(argv=None) -> None:
    args = make_parser("train").parse_args(argv)
    launch(job_of(args), run, settings_of(args))


if __name__ == "__main__":
    main(sys.argv[1:])
