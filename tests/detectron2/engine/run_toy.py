"""Train a toy network by DefaultTrainer in one or several processes: a program that tests start.

    python run_toy.py --folder FOLDER [--kill-at N] [arguments of default_argument_parser]

FOLDER holds `images/` and `instances.json`. Rank 0 writes the total loss of each iteration to
`losses.json` and the final weights to `weights.pth` in OUTPUT_DIR.
"""

import argparse
import json
import os
import signal
import sys

import torch
from torch import nn

from detectron2.config import CfgNode, configurable, get_cfg
from detectron2.data import DatasetCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import (
    DefaultTrainer,
    default_argument_parser,
    default_setup,
    hooks,
    launch,
)
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm

DATASET = "engine_test_toy"


@META_ARCH_REGISTRY.register()
class ToyCounter(nn.Module):
    """Regress the summed box areas of an image from its pixels; the loss is a mean over images."""

    @configurable
    def __init__(self, *, dropout: float, device: str):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(4, 1)
        self.to(device)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        # Any float key will do: the toy has no keys of its own.
        return {"dropout": cfg.MODEL.PIXEL_STD[0] - 1, "device": cfg.MODEL.DEVICE}

    def forward(self, batched_inputs):
        losses = []
        for record in batched_inputs:
            pixels = record["image"].float()[None] / 255
            features = self.dropout(self.conv(pixels).relu().mean(dim=(2, 3)))
            area = record["instances"].gt_boxes.area().sum() / pixels[0, 0].numel()
            losses.append((self.linear(features)[0, 0] - area).square())
        return {"loss_area": torch.stack(losses).mean()}


def toy_config(folder: str, opts: list[str]) -> CfgNode:
    if DATASET not in DatasetCatalog:
        register_coco_instances(DATASET, {}, f"{folder}/instances.json", f"{folder}/images")
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "ToyCounter"
    cfg.MODEL.DEVICE = "cpu"
    cfg.DATASETS.TRAIN = (DATASET,)
    cfg.INPUT.MIN_SIZE_TRAIN = (16, 24)
    cfg.INPUT.CROP.ENABLED = True
    cfg.SOLVER.IMS_PER_BATCH = 4
    cfg.SOLVER.MAX_ITER = 12
    cfg.SOLVER.STEPS = (9,)
    cfg.SOLVER.WARMUP_ITERS = 4
    cfg.SOLVER.BASE_LR = 0.05
    cfg.SOLVER.CHECKPOINT_PERIOD = 4
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SEED = 3
    cfg.merge_from_list(opts)
    return cfg


def run(args: argparse.Namespace) -> None:
    cfg = toy_config(args.folder, args.opts)
    default_setup(cfg, args)
    trainer = DefaultTrainer(cfg)
    losses = {}

    def record(t):
        if comm.is_main_process():
            losses[t.iter] = t.storage.latest()["total_loss"][0]
        if t.iter == args.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    trainer.register_hooks([hooks.CallbackHook(after_step=record)])
    trainer.resume_or_load(resume=args.resume)
    trainer.train()
    if comm.is_main_process():
        with open(os.path.join(cfg.OUTPUT_DIR, "losses.json"), "w", encoding="utf-8") as file:
            json.dump(losses, file)
        model = getattr(trainer.model, "module", trainer.model)
        torch.save(model.state_dict(), os.path.join(cfg.OUTPUT_DIR, "weights.pth"))


def main(argv=None) -> None:
    parser = default_argument_parser()
    parser.add_argument("--folder", required=True)
    parser.add_argument("--kill-at", type=int, help="end by SIGKILL after this iteration")
    args = parser.parse_args(argv)
    launch(
        run,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url="auto",
        args=(args,),
        num_processes=args.num_processes,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
