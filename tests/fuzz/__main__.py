"""Fuzz the readers of files: python -m tests.fuzz --executions 2000000 --seed 1

Prints the executions a second of each target, and at the end one line with all failures. Inputs
that fail are saved, each with a file that says how; the exit code is then 1.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

from tests.fuzz.engine import Report, chosen, fuzz
from tests.fuzz.targets import TARGETS

say = partial(print, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--executions", type=int, default=100_000, help="of all targets together")
    parser.add_argument("--seed", type=int, default=0)
    names = ", ".join(TARGETS)
    parser.add_argument("--target", action="append", help=f"one of {names}; by default all")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--timeout", type=float, default=20, help="seconds that mean a hang")
    parser.add_argument(
        "--output", type=Path, default=Path("output/fuzz"), help="of failing inputs"
    )
    args = parser.parse_args()
    targets = chosen(args.target or ["all"])
    total = Report()
    weights = sum(target.share for target in targets)
    for target in targets:
        count = -(-args.executions * target.share // weights)
        settings = {"seed": args.seed, "processes": args.processes, "timeout": args.timeout}
        report = fuzz(target, count, out=args.output, **settings)
        say(f"{target.name:12} {report.executions / report.seconds:8.0f}/s  {report}")
        for kind, number in report.kinds.most_common():
            say(f"    {number} x {kind}")
        total += report
    say(f"{total}")
    return 1 if total.failures else 0


if __name__ == "__main__":
    sys.exit(main())
