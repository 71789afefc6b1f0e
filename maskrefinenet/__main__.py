"""`python -m maskrefinenet train|refine`."""

import argparse
import sys
from collections.abc import Sequence

from . import refine, train_command

COMMANDS = {
    "train": (train_command, "train on a teacher's masks of the strong images"),
    "refine": (refine, "refine pseudo labels"),
}


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m maskrefinenet", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (module, description) in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=description,
            description=description,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        module.add_arguments(command)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; what is wrong with its input is told in one line."""
    args = make_parser().parse_args(argv)
    try:
        return COMMANDS[args.command][0].main(args)
    except (FileNotFoundError, ValueError) as error:
        print(f"maskrefinenet {args.command}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
