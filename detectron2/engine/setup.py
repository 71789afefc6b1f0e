"""The first steps of a training program: arguments, logs, seed, writers, distributed model."""

import argparse
import logging
import os
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng, setup_environment
from detectron2.utils.events import (
    CommonMetricPrinter,
    EventWriter,
    JSONWriter,
    TensorboardXWriter,
)
from detectron2.utils.logger import setup_logger
from weaklabels.files import atomic_text


def create_ddp_model(
    model: nn.Module, *, fp16_compression: bool = False, **kwargs: Any
) -> nn.Module:
    """`model` in DistributedDataParallel, or `model` itself if there is one process.

    Args:
        fp16_compression: send gradients as float16.
        kwargs: further arguments of DistributedDataParallel.
    """
    if comm.get_world_size() == 1:
        return model
    if "device_ids" not in kwargs and next(model.parameters()).is_cuda:
        kwargs["device_ids"] = [comm.get_local_rank()]
    ddp_model = DistributedDataParallel(model, **kwargs)
    if fp16_compression:
        from torch.distributed.algorithms.ddp_comm_hooks import default as comm_hooks

        ddp_model.register_comm_hook(state=None, hook=comm_hooks.fp16_compress_hook)
    return ddp_model


def default_argument_parser(epilog: str | None = None) -> argparse.ArgumentParser:
    """The options of training programs: config file, mode, machines, config keys."""
    program = sys.argv[0]
    parser = argparse.ArgumentParser(
        epilog=epilog
        or f"""
Examples:
  train on 8 GPUs:
    {program} --num-gpus 8 --config-file cfg.yaml
  change config keys:
    {program} --config-file cfg.yaml MODEL.WEIGHTS /path/weight.pth SOLVER.BASE_LR 0.001
  two processes on the CPU:
    {program} --config-file cfg.yaml --num-gpus 0 --num-processes 2
  on two machines, on each with its own rank:
    {program} --config-file cfg.yaml --machine-rank 0 --num-machines 2 --dist-url tcp://HOST:PORT
    torchrun --nnodes 2 --node-rank 0 --nproc-per-node 8 ... {program} --config-file cfg.yaml
""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config-file", default="", metavar="FILE", help="YAML file with config keys"
    )
    parser.add_argument(
        "--resume", action="store_true", help="continue from the last checkpoint in OUTPUT_DIR"
    )
    parser.add_argument(
        "--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS without training"
    )
    parser.add_argument("--num-gpus", type=int, default=1, help="GPUs to use on each machine")
    parser.add_argument(
        "--num-processes",
        type=int,
        default=1,
        help="CPU processes on each machine; needs --num-gpus 0",
    )
    parser.add_argument("--num-machines", type=int, default=1, help="machines that take part")
    parser.add_argument(
        "--machine-rank", type=int, default=0, help="number of this machine, from 0"
    )
    parser.add_argument(
        "--dist-url",
        default="auto",
        help="tcp://HOST:PORT of machine 0, open to any host; auto: one machine, loopback only",
    )
    parser.add_argument(
        "opts",
        default=None,
        nargs=argparse.REMAINDER,
        metavar="KEY VALUE",
        help="config keys to change, at the end of the command",
    )
    return parser


def default_setup(cfg: CfgNode, args: argparse.Namespace | Mapping[str, Any]) -> None:
    """Create OUTPUT_DIR, start its log, save the config there, and seed this process.

    Args:
        args: parsed arguments; `config_file` and `eval_only` are read if present.
    """
    setup_environment()
    rank = comm.get_rank()
    if comm.is_main_process() and cfg.OUTPUT_DIR:
        os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    # "fvcore" logs the checkpoints.
    for name in ("fvcore", "adet", "detectron2"):
        setup_logger(cfg.OUTPUT_DIR or None, distributed_rank=rank, name=name)
    logger = logging.getLogger(__name__)
    logger.info("Process %d of %d", rank, comm.get_world_size())
    logger.info("Versions and devices:\n%s", collect_env_info())
    logger.info("Arguments: %s", args)
    config_file = getattr(args, "config_file", "")
    if config_file:
        logger.info("Config file: %s", config_file)
    if comm.is_main_process() and cfg.OUTPUT_DIR:
        path = os.path.join(cfg.OUTPUT_DIR, "config.yaml")
        with atomic_text(path) as file:
            file.write(cfg.dump())
        logger.info("Wrote the config of this run to %s", path)
    # Each rank draws its own random numbers.
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + rank)
    if not getattr(args, "eval_only", False):
        # Not in evaluation: it has many image sizes, and each would be benchmarked.
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK


def default_writers(output_dir: str, max_iter: int | None = None) -> list[EventWriter]:
    """Writers to the terminal, to `metrics.json` and to TensorBoard files in `output_dir`."""
    os.makedirs(output_dir, exist_ok=True)
    return [
        CommonMetricPrinter(max_iter),
        JSONWriter(os.path.join(output_dir, "metrics.json")),
        TensorboardXWriter(output_dir),
    ]
