#!/usr/bin/env python
"""Time point-guided inference and mask refinement, each against its own yardstick, in one run.

    python tools/benchmark.py [--only solov2|maskrefinenet] [--threads 2] [--repeats 3]

Seconds depend on the machine and on what else it does; the ratios are the result: what is compared
takes turns. What each line means: tools/benchmark_solov2.py and tools/benchmark_maskrefinenet.py.
"""

import argparse
import os
import sys
from collections.abc import Sequence

import torch

from wsis.benchmarks import maskrefinenet as benchmark_maskrefinenet
from wsis.benchmarks import solov2 as benchmark_solov2

PARTS = ("solov2", "maskrefinenet")


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables; 1 where a figure misses its target."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=PARTS, help="one of the two tables")
    parser.add_argument("--repeats", type=int, default=3, help="turns that all measured parts take")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(argv)
    if args.repeats < 1 or args.threads < 1:
        parser.error("--repeats and --threads have to be at least 1")
    torch.set_num_threads(args.threads)
    print(
        f"torch {torch.__version__}, CPU, float32, {args.threads} threads, random weights, "
        f"machine load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    )
    reached = []
    if args.only != "maskrefinenet":
        height, width = benchmark_solov2.Scale().image_hw
        print(f"\nSOLOv2, {benchmark_solov2.CONFIG_FILE.stem}, one image {height}x{width}.")
        print("After the network: what is left once backbone, mask branch and towers have run")
        print("(prompt none: and the predictions); measured alone, not as a difference.\n")
        rows = benchmark_solov2.measure(repeats=args.repeats)
        benchmark_solov2.print_table(rows)
        reached += [row.reached for row in rows if row.reached is not None]
    if args.only != "solov2":
        print("\nMaskRefineNet, resnet101, 256x256, 20 instances\n")
        rows = benchmark_maskrefinenet.measure(repeats=args.repeats)
        benchmark_maskrefinenet.print_table(rows)
        reached += [row.reached for row in rows]
    return 0 if all(reached) else 1


if __name__ == "__main__":
    sys.exit(main())
