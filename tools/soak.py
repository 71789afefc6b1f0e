"""Disturb both recipes for some time: SIGKILL, SIGTERM, a full disk, a second run, dead workers.

    python tools/soak.py --minutes 60

Runs the quick starts in smoke form once in peace, then again and again, disturbed at random
moments and started anew. Ends with what was lost and what differs from the runs in peace; the exit
code is 1 where anything does.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.soak.run import RECIPES, report, soak


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("output/soak"))
    parser.add_argument("--recipe", choices=RECIPES, action="append", help="by default all")
    args = parser.parse_args()
    recipes = {name: RECIPES[name] for name in args.recipe or RECIPES}
    return report(soak(recipes, args.output, 60 * args.minutes, args.seed))


if __name__ == "__main__":
    sys.exit(main())
