"""Train as tools/train_net.py does and write the total loss of each iteration to losses.json.

A program that tests start with the arguments of tools/train_net.py.
"""

import argparse
import json
import os
import sys

from detectron2.engine import default_argument_parser, hooks, launch
from detectron2.utils import comm
from wsis.training import Trainer, setup


def run(args: argparse.Namespace) -> None:
    cfg = setup(args)
    trainer = Trainer(cfg)
    losses = []

    def record(t):
        if comm.is_main_process():
            losses.append(t.storage.latest()["total_loss"][0])

    trainer.register_hooks([hooks.CallbackHook(after_step=record)])
    trainer.resume_or_load(resume=args.resume)
    trainer.train()
    if comm.is_main_process():
        with open(os.path.join(cfg.OUTPUT_DIR, "losses.json"), "w", encoding="utf-8") as file:
            json.dump(losses, file)


def main(argv=None) -> None:
    args = default_argument_parser().parse_args(argv)
    launch(run, args.num_gpus, dist_url="auto", args=(args,), num_processes=args.num_processes)


if __name__ == "__main__":
    main(sys.argv[1:])
