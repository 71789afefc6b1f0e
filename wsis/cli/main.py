"""`wsis COMMAND`: every program under one name, and the one way in which programs end.

A command is a module of `wsis.cli` with `add_arguments(parser)` and `run(args) -> exit code`; the
first line of its docstring is its help. Programs in `tools/` call `program(COMMAND)`. Three more
names are optional: `make_parser()`, where the parser is made elsewhere; `RESUME`, the flag with
which an interrupted run goes on; and `OUTPUT`, the argument that names what the command writes, and
nobody else meanwhile. Commands of several processes lock their outputs themselves.
"""

import argparse
import ast
import importlib
import importlib.util
import shlex
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import ModuleType

from weaklabels.image_root import outside_root_allowed
from weaklabels.locks import output_lock
from wsis.errors import user_message

COMMANDS = {  # name: module below wsis.cli, imported when the command is used
    "train": "train",
    "generate": "generate",
    "train-refiner": "train_refiner",
    "refine": "refine",
    "demo": "demo",
    "download": "download",
    "reproduce": "reproduce",
    "package": "package",
    "figures": "figures",
    "doctor": "doctor",
    "gpu-check": "gpu_check",
    "benchmark": "benchmark",
    "split": "split",
    "merge": "merge",
    "evaluate-labels": "evaluate_labels",
    "evaluate-detections": "evaluate_detections",
    "pseudo-boxes": "pseudo_boxes",
    "box-masks": "box_masks",
    "point-masks": "point_masks",
    "import-points": "import_points",
    "convert-bdd100k": "convert_bdd100k",
    "voc-to-coco": "voc_to_coco",
    "tags": "tags",
    "clues": "clues",
    "proposals": "proposals",
    "make-shapes": "make_shapes",
    "run": "run",
    "pipeline": "pointwssis",
    "quickstart": "quickstart",
}
USER_ERROR = 2  # exit code where the input has to be corrected
INTERRUPTED = 130  # exit code after Ctrl-C, as shells have it


def program(command: str, argv: Sequence[str] | None = None) -> int:
    """Run one command with its own words, as the programs in `tools/` do; returns the exit code."""
    from wsis.cli.flags import current_spelling  # imports torch, which `wsis --help` can do without

    module = importlib.import_module(f"wsis.cli.{COMMANDS[command]}")
    words = current_spelling(command, sys.argv[1:] if argv is None else argv)
    args = parse(make_parser(command, module), words)
    try:
        with outside_root_allowed(args.allow_outside_root), locked_output(module, args):
            return module.run(args)
    except KeyboardInterrupt:
        again = resume_command(command, module, words, own_program=argv is None)
        print(f"\nwsis {command}: interrupted; to go on:\n  {again}", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        message = user_message(error)
        if message is None:
            raise
        print(f"wsis {command}: {message}", file=sys.stderr)
        return USER_ERROR


def locked_output(module: ModuleType, args: argparse.Namespace) -> AbstractContextManager:
    """The lock of the output that a command names with `OUTPUT`."""
    output = getattr(args, getattr(module, "OUTPUT", ""), None)
    return nullcontext() if output is None else output_lock(output)


def make_parser(command: str, module: ModuleType | None = None) -> argparse.ArgumentParser:
    """The parser of one command."""
    module = module or importlib.import_module(f"wsis.cli.{COMMANDS[command]}")
    if hasattr(module, "make_parser"):
        parser = module.make_parser()
    else:
        parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter)
        module.add_arguments(parser)
    parser.add_argument(
        "--allow-outside-root",
        action="store_true",
        help="also read images that lie outside the image root (a name with .., a link)",
    )
    parser.prog, parser.description = f"wsis {command}", module.__doc__
    return parser


def parse(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
    """Parse a command line; KEY VALUE pairs may stand between flags where the command says so."""
    if any(action.dest == "opts" and action.nargs == "*" for action in parser._actions):
        return parser.parse_intermixed_args(words)
    return parser.parse_args(words)


def resume_command(
    command: str, module: ModuleType, words: Sequence[str], *, own_program: bool
) -> str:
    """What to type to go on with an interrupted run.

    Args:
        own_program: the command was started as a file of its own, such as tools/train_net.py.
    """
    start = ["wsis", command]
    if own_program and sys.argv[0].endswith(".py"):
        start = ["python", sys.argv[0]]
    resume = getattr(module, "RESUME", None)
    return shlex.join([*start, *([resume] if resume and resume not in words else []), *words])


def main(argv: Sequence[str] | None = None) -> int:
    """The console command `wsis`."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return 0
    if words[0] not in COMMANDS:
        print(
            f"wsis: unknown command {words[0]!r}; expected one of {', '.join(COMMANDS)}",
            file=sys.stderr,
        )
        return USER_ERROR
    return program(words[0], words[1:])


def usage() -> str:
    """The list of commands with the help line of each."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {help_line(module)}" for name, module in COMMANDS.items()]
    return "\n".join(
        ["usage: wsis COMMAND [options]", "", "commands:", *lines]
        + ["", "wsis COMMAND --help describes the options of a command."]
    )


def help_line(module: str) -> str:
    """The first line of a command's docstring, read without importing what it needs."""
    path = Path(__file__).with_name(f"{module}.py")
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    if not docstring:
        raise ValueError(f"{path}: a command needs a docstring; its first line is the help")
    return docstring.splitlines()[0]
