"""Run a recipe stage by stage: skip what is finished, resume what was interrupted.

    wsis run pointwssis 10p [--dataset coco] [--dry-run] [--from STAGE] [KEY VALUE ...]

`wsis run RECIPE --help` describes the options of a recipe.
"""

import argparse
import importlib
import os
import shlex
from collections.abc import Mapping
from types import ModuleType

import torch

from wsis.cli.flags import current_spelling
from wsis.runner import FlagValue, Machines, PipelineError, Run, dry_run, run_stages, set_aside

RECIPES = {"pointwssis": "pointwssis", "weaksam": "weaksam"}  # name: module below wsis.cli


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", choices=RECIPES)
    parser.add_argument("words", nargs=argparse.REMAINDER, help="see wsis run RECIPE --help")


def run(args: argparse.Namespace) -> int:
    module = importlib.import_module(f"wsis.cli.{RECIPES[args.recipe]}")
    return module.run(recipe_parser(args.recipe, module).parse_intermixed_args(args.words))


def recipe_parser(recipe: str, module: ModuleType) -> argparse.ArgumentParser:
    """The parser of one recipe."""
    parser = argparse.ArgumentParser(
        prog=f"wsis run {recipe}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    return parser


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """What every recipe's command takes."""
    parser.add_argument("--from", dest="start", metavar="STAGE", help="redo from here on")
    parser.add_argument(
        "--set-aside", metavar="STAGE", help="rename the results from here on, and stop"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the commands and stop")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config overrides")


def start(todo: Run, args: argparse.Namespace) -> int:
    """Do with a run what the arguments of `add_run_arguments` say."""
    if args.dry_run:
        print(dry_run(todo))
        return 0
    if args.start and todo.machines.num_nodes > 1:
        raise PipelineError(
            "--from on several machines: run --set-aside on one of them, then start them all"
        )
    if args.start or args.set_aside:
        set_aside(todo, args.start or args.set_aside)
    if args.set_aside:
        return 0
    if not run_stages(todo):
        print(f"Nothing to do: every stage of {todo.output} is finished.")
    return 0


def overrides_of(opts: list[str]) -> dict[str, str]:
    """KEY VALUE pairs as a mapping; the last one counts where a key is given twice."""
    if len(opts) % 2:
        raise PipelineError(f"overrides come in pairs of KEY VALUE; got {' '.join(opts)!r}")
    return dict(zip(opts[::2], opts[1::2], strict=True))


def flags_of(text: str, option: str, command: str) -> dict[str, FlagValue]:
    """Options that are written as one word, "--size 64 --amp", as flags.

    Args:
        option: the option that has this value, for messages.
        command: the command of `wsis` that they are for.
    """
    flags: dict[str, list[str]] = {}
    name = None
    for word in current_spelling(command, shlex.split(text)):
        if word.startswith("--"):
            name, equals, value = word.removeprefix("--").partition("=")
            flags[name] = [value] if equals else []
        elif name is None:
            raise PipelineError(f"{option} {text!r}: {word!r} belongs to no --option")
        else:
            flags[name].append(word)
    return {
        name: values[0] if len(values) == 1 else tuple(values) or True
        for name, values in flags.items()
    }


def machines_of(environment: Mapping[str, str] = os.environ) -> Machines:
    """The machines that NUM_GPUS, NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT describe.

    Raises:
        PipelineError: one of several machines does not know its place among them.
    """
    num_gpus = number_of(environment, "NUM_GPUS", torch.cuda.device_count())
    num_nodes = number_of(environment, "NNODES", 1, least=1)
    if num_nodes == 1:
        return Machines(num_gpus)
    missing = [name for name in ("NODE_RANK", "MASTER_ADDR") if not environment.get(name)]
    if missing:
        raise PipelineError(
            f"NNODES={num_nodes} also needs {' and '.join(missing)} in the environment; "
            "scripts/slurm_example.sh shows how"
        )
    return Machines(
        num_gpus,
        num_nodes,
        node_rank=number_of(environment, "NODE_RANK", 0),
        address=environment["MASTER_ADDR"],
        port=number_of(environment, "MASTER_PORT", Machines.port, least=1),
    )


def number_of(environment: Mapping[str, str], name: str, default: int, least: int = 0) -> int:
    """A whole number of the environment; PipelineError where the variable holds none."""
    text = environment.get(name) or str(default)
    if not text.isdecimal() or int(text) < least:
        raise PipelineError(f"{name}={text}: expected a whole number of {least} or more")
    return int(text)
