"""Check this machine's GPU: the same results as on the CPU, training, memory, speed.

    bash scripts/gpu_check.sh [--tests-only] [--only WORD] [--output output/gpu_check.json]
    bash scripts/gpu_check.sh --device cpu --quick     # the same code, small, without a GPU

Every check is a line of the table and an entry of the JSON file: passed, failed or skipped, with
its figure and bound. The exit code is 1 where one failed and 2 where there is no GPU. Weights are
random, images are drawn; nothing is downloaded.
"""

import argparse
import logging
import platform
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision

from wsis.gpu_check import FULL, QUICK, Context, Status, all_checks, run_checks
from wsis.gpu_check.results import describe, table_head, table_line, write_report

MINUTES = 20.0
QUIET = ("detectron2", "fvcore", "maskrefinenet", "torch.distributed")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, ... or cpu (with --quick)")
    parser.add_argument("--quick", action="store_true", help="tiny networks, two steps")
    parser.add_argument("--tests-only", action="store_true", help="do not measure speed")
    parser.add_argument("--only", metavar="WORD", help="checks whose name contains this")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="no check begins later")
    parser.add_argument("--output", type=Path, default=Path("output/gpu_check.json"))


def choose_device(args: argparse.Namespace) -> torch.device:
    """The device to check; a ValueError says what to do where there is none."""
    device = torch.device(args.device)
    if device.type == "cpu" and not args.quick:
        raise ValueError("--device cpu needs --quick: the full check is for a GPU")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device {args.device}: expected cuda, cuda:N or cpu")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"no CUDA device was found by PyTorch {torch.__version__} (built for CUDA "
            f"{torch.version.cuda}); --device cpu --quick runs the same code small on the CPU"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {args.device}: {torch.cuda.device_count()} GPUs were found")
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def precisions_of(device: torch.device) -> tuple[str, ...]:
    """What is checked: the CPU stands in for a GPU in float32 and bfloat16."""
    if device.type == "cpu":
        return ("fp32", "bf16")
    half = ("bf16",) if torch.cuda.is_bf16_supported(including_emulation=False) else ()
    return ("fp32", "fp16", *half)


def describe_machine(device: torch.device, precisions: Sequence[str]) -> dict[str, Any]:
    """What the figures depend on."""
    machine = {
        "device": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "precisions": list(precisions),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        machine |= {
            "device": properties.name,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return machine


def run(args: argparse.Namespace) -> int:
    """Run the checks; 1 where one failed."""
    device = choose_device(args)
    for name in QUIET:  # INFO is on, so that trainers add no handler of their own to stdout
        logging.getLogger(name).setLevel(logging.INFO)
    precisions = precisions_of(device)
    machine = describe_machine(device, precisions)
    print("; ".join(f"{key}: {value}" for key, value in machine.items()), end="\n\n")
    print(table_head(), flush=True)
    results = []
    if device.type == "cuda":
        torch.cuda.set_device(device)
    with tempfile.TemporaryDirectory(prefix="gpu_check_") as folder:
        context = Context(device, QUICK if args.quick else FULL, Path(folder), precisions)
        checks = [c for c in all_checks(context, tests_only=args.tests_only)
                  if args.only is None or args.only in c.name]  # fmt: skip
        if not checks:
            raise ValueError(f"--only {args.only}: no check has that in its name")
        for result in run_checks(checks, context, minutes=args.minutes):
            results.append(result)
            print(table_line(result), flush=True)
            write_report(args.output, machine, results)  # a check that kills the process is last
    print(f"\n{describe(results)}; {args.output}")
    return 1 if any(result.status is Status.FAILED for result in results) else 0
