"""`wsis COMMAND`: every program under one name, and the one way in which programs end.

A command is a module of `wsis.cli` with `add_arguments(parser)` and `run(args) -> exit code`; the
first line of its docstring is its help. Programs in `tools/` call `program(COMMAND)`.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from types import ModuleType

COMMANDS = {  # name: module below wsis.cli, imported when the command is used
    "split": "split",
    "merge": "merge",
    "evaluate-labels": "evaluate_labels",
    "import-points": "import_points",
    "convert-bdd100k": "convert_bdd100k",
    "voc-to-coco": "voc_to_coco",
    "make-shapes": "make_shapes",
    "run": "run",
    "pipeline": "pointwssis",
    "quickstart": "quickstart",
}
USER_ERROR = 2  # exit code where the input has to be corrected


def program(command: str, argv: Sequence[str] | None = None) -> int:
    """Run one command with its own words, as the programs in `tools/` do."""
    module = importlib.import_module(f"wsis.cli.{COMMANDS[command]}")
    return finish(command, module, make_parser(command, module), argv)


def make_parser(command: str, module: ModuleType) -> argparse.ArgumentParser:
    """The parser of one command."""
    parser = argparse.ArgumentParser(
        prog=f"wsis {command}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    return parser


def finish(
    command: str,
    module: ModuleType,
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
) -> int:
    """Parse, run, and end: user errors in one line and exit code 2, bugs with their traceback."""
    args = parser.parse_intermixed_args(argv) if _has_pairs(parser) else parser.parse_args(argv)
    try:
        return module.run(args)
    except (ValueError, OSError) as error:
        print(f"wsis {command}: {error}", file=sys.stderr)
        return USER_ERROR


def _has_pairs(parser: argparse.ArgumentParser) -> bool:
    """Whether the command takes KEY VALUE pairs that may stand between its flags."""
    return any(action.dest == "opts" and action.nargs == "*" for action in parser._actions)


def main(argv: Sequence[str] | None = None) -> int:
    """The console command `wsis`."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print("usage: wsis COMMAND [options]\n\ncommands:")
        for name in COMMANDS:
            print(f"  {name}")
        return 0
    if words[0] not in COMMANDS:
        known = ", ".join(COMMANDS)
        print(f"wsis: {words[0]!r} is no command; known: {known}", file=sys.stderr)
        return USER_ERROR
    return program(words[0], words[1:])
