"""Time point-guided inference, mask refinement and WeakSAM, each against a baseline.

    wsis benchmark [--only solov2|maskrefinenet|weaksam] [--threads 2] [--repeats 3]

Seconds depend on the machine and on its load; the ratios are the result, since what is compared
takes turns. The modules of wsis.benchmarks say what each line means.
"""

import argparse
import os

import torch

from wsis.benchmarks import clues, maskrefinenet, proposals, solov2, wsod

PARTS = ("solov2", "maskrefinenet", "weaksam")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", choices=PARTS, help="one of the tables")
    parser.add_argument("--repeats", type=int, default=3, help="turns that all measured parts take")
    parser.add_argument("--threads", type=int, default=2)
    group = parser.add_argument_group("maskrefinenet")
    group.add_argument("--encoder", default="resnet101")
    group.add_argument("--size", type=int, default=256, help="side of the input, pixels")
    group.add_argument("--instances", type=int, default=20)


def run(args: argparse.Namespace) -> int:
    """Print the tables; 1 where a figure misses its target."""
    for name in ("repeats", "threads", "size", "instances"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} {getattr(args, name)}; at least 1 is needed")
    torch.set_num_threads(args.threads)
    print(
        f"torch {torch.__version__}, CPU, float32, {args.threads} threads, random weights, "
        f"machine load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    )
    reached = []
    if args.only in (None, "solov2"):
        reached += run_solov2(args.repeats)
    if args.only in (None, "maskrefinenet"):
        size = f"{args.size} x {args.size}"
        print(f"\nMaskRefineNet, {args.encoder}, {size}, {args.instances} instances\n")
        rows = maskrefinenet.measure(
            encoder=args.encoder, size=args.size, instances=args.instances, repeats=args.repeats
        )
        maskrefinenet.print_table(rows)
        reached += [row.reached for row in rows]
    if args.only in (None, "weaksam"):
        print("\nWeakSAM. Of memory, the baseline keeps all attention maps.\n")
        rows = [*proposals.measure(repeats=args.repeats), *wsod.measure(args.repeats)]
        rows += clues.measure(threads=args.threads)
        maskrefinenet.print_table(rows, "plain twin")
        reached += [row.reached for row in rows]
    return 0 if all(reached) else 1


def run_solov2(repeats: int) -> list[bool]:
    """Print SOLOv2's table; whether each target was reached."""
    height, width = solov2.Scale().image_hw
    print(f"\nSOLOv2, {solov2.CONFIG_FILE}, one image {height}x{width}.")
    print("After the network: what is left once backbone, mask branch and towers have run")
    print("(prompt none: and the predictions); measured alone, not as a difference.\n")
    rows = solov2.measure(repeats=repeats)
    solov2.print_table(rows)
    return [row.reached for row in rows if row.reached is not None]
