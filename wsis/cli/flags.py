"""The glossary of flags: one spelling and one meaning for all commands, and the old spellings.

A command adds a flag with `add_flag(parser, "--records", required=True)` and says more where the
general meaning is not enough: `help="..."` replaces it.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from maskrefinenet.train_command import OLD_SPELLINGS as OLD_REFINER_TRAINING
from weaksam.segmenters.spec import DEFAULT_SEGMENTER, FORMS
from wsis.launcher import Job


@dataclass(frozen=True)
class Flag:
    """What a flag takes and means, in every command that has it."""

    type: type
    metavar: str
    help: str


GLOSSARY = {
    "--annotations": Flag(Path, "FILE", "COCO annotation file"),
    "--weak-annotations": Flag(Path, "FILE", "COCO file with the points of the weak images"),
    "--tags": Flag(Path, "FILE", "tag file: which classes each image shows"),
    "--val-tags": Flag(Path, "FILE", "tag file of the validation images"),
    "--val-image-root": Flag(Path, "FOLDER", "folder of the validation images"),
    "--records": Flag(Path, "FILE", "prediction records (.jsonl)"),
    "--image-root": Flag(Path, "FOLDER", "folder that the file names of images are relative to"),
    "--output": Flag(Path, "PATH", "file or folder to write"),
    "--config-file": Flag(
        str, "FILE", "config file, or the name of a shipped one, such as SOLOv2/R50_3x.yaml"
    ),
    "--weights": Flag(Path, "FILE", "checkpoint of the network"),
    "--dataset": Flag(str, "NAME", "registered dataset, or name=annotations.json:image_folder"),
    "--batch-size": Flag(int, "N", "how many go through the network at once"),
    "--workers": Flag(int, "N", "helpers beside the network in each process"),
    "--num-gpus": Flag(int, "N", "GPUs on each machine, one process each; 0: the CPU"),
    "--num-processes": Flag(int, "N", "processes on each machine, with --num-gpus 0"),
    "--num-machines": Flag(int, "N", "machines; each runs the command with its --machine-rank"),
    "--machine-rank": Flag(int, "N", "this machine, from 0"),
    "--dist-url": Flag(str, "URL", "tcp://HOST:PORT of machine 0; auto: one machine"),
    "--seed": Flag(int, "N", "seed of the random numbers"),
}

# Accepted for one more release, and in no help text.
OLD_SPELLINGS: dict[str, dict[str, str]] = {
    "train-refiner": OLD_REFINER_TRAINING,
    "refine": {"--checkpoint": "--weights", "--predictions": "--records", "--out": "--output"},
    "reproduce": {
        "--checkpoint": "--weights",
        "--truth-json": "--annotations",
        "--weak-json": "--weak-annotations",
    },
    "evaluate-labels": {
        "--truth-json": "--annotations",
        "--labels": "--records",
        "--weak-json": "--weak-annotations",
    },
    "merge": {"--strong-json": "--annotations", "--weak-json": "--weak-annotations"},
}
SHORT_OF_JOB = "one process per GPU or, with --num-gpus 0, --num-processes on the CPU"


def add_flag(parser: Any, name: str, *short: str, **options: Any) -> argparse.Action:
    """Add a flag of the glossary to a parser or a group of one.

    Args:
        short: further names, such as "-o".
        options: as for `add_argument`; they take the place of what the glossary says.
    """
    flag = GLOSSARY[name]
    general = {"type": flag.type, "metavar": flag.metavar, "help": flag.help}
    return parser.add_argument(name, *short, **(general | options))


def add_segmenter(parser: Any, default: str | None = DEFAULT_SEGMENTER) -> None:
    """Add --segmenter and --download; `default` None tells whether the first was given."""
    help_text = f"one of {FORMS} (default: {DEFAULT_SEGMENTER})"
    parser.add_argument("--segmenter", default=default, metavar="SPEC", help=help_text)
    parser.add_argument(
        "--download", action="store_true", help="let transformers fetch a segmenter by its name"
    )


def add_config(parser: argparse.ArgumentParser, **options: Any) -> None:
    """Add --config-file, and KEY VALUE pairs as the last words; see `overrides`."""
    add_flag(parser, "--config-file", **options)
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config overrides, last"
    )


def add_job(parser: argparse.ArgumentParser, *, num_gpus: int = 1) -> None:
    """Add the flags that say where a stage runs; `job_of` reads them."""
    group = parser.add_argument_group("processes", SHORT_OF_JOB)
    defaults = Job(num_gpus=num_gpus)
    for name in ("num_gpus", "num_processes", "num_machines", "machine_rank", "dist_url"):
        default = getattr(defaults, name)
        flag = f"--{name.replace('_', '-')}"
        help_text = f"{GLOSSARY[flag].help} (default: {default})"
        add_flag(group, flag, default=default, help=help_text)


def job_of(args: argparse.Namespace) -> Job:
    """The job of a command line."""
    return Job(
        num_gpus=args.num_gpus,
        num_processes=args.num_processes,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
    )


def any_gpu() -> int:
    """1 where this machine has a GPU, else 0: the default of commands that run on either."""
    return int(torch.cuda.is_available())


def current_spelling(command: str, words: Sequence[str]) -> list[str]:
    """The words of a command line with old spellings of flags replaced."""
    old = OLD_SPELLINGS.get(command, {})
    current = []
    for word in words:
        flag, equals, value = word.partition("=")
        current.append(f"{old.get(flag, flag)}{equals}{value}")
    return current
