"""Train MaskRefineNet: `python -m maskrefinenet train`.

`python -m maskrefinenet refine` is an old spelling of `python -m wsis refine`, which it starts.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from .distributed import world
from .train_command import OLD_SPELLINGS, add_arguments, settings_of
from .train_run import train


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m maskrefinenet", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser(
        "train",
        help="train on a teacher's masks of the strong images",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_arguments(command)
    command.add_argument("--device", help="cpu, cuda, cuda:1, ...; default: CUDA if there is any")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; a mistake in its input is told in one line."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["refine"]:
        os.execv(sys.executable, [sys.executable, "-m", "wsis", *words])
    args = make_parser().parse_args([OLD_SPELLINGS.get(word, word) for word in words])
    try:
        settings = settings_of(args)
        with world(args.device) as here:
            train(settings, here)
    except (OSError, ValueError) as error:
        print(f"maskrefinenet {args.command}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
