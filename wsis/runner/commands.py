"""Commands as data, and the words that start them on one machine or on several."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# Programs of a checkout under the names that users know; elsewhere `python -m wsis COMMAND` runs.
SCRIPTS = {
    "train": "train_net.py",
    "generate": "generate_pseudo_labels.py",
    "split": "split_coco.py",
    "merge": "merge_labels.py",
    "evaluate-labels": "evaluate_labels.py",
    "make-shapes": "make_shapes.py",
}
TORCHRUN = (sys.executable, "-m", "torch.distributed.run")

FlagValue = str | int | float | bool | Path | tuple[object, ...] | None


@dataclass(frozen=True)
class Machines:
    """The machines of one run and this one's place among them.

    num_gpus: GPUs of each machine; 0 is the CPU.  address, port: where machine 0 listens.
    """

    num_gpus: int
    num_nodes: int = 1
    node_rank: int = 0
    address: str = ""
    port: int = 29500

    @property
    def world_size(self) -> int:
        return self.num_gpus * self.num_nodes

    @property
    def launcher(self) -> tuple[str, ...]:
        """Words before a program that runs on this machine as one of several."""
        return (
            *TORCHRUN,
            *(f"--nnodes={self.num_nodes}", f"--node-rank={self.node_rank}"),
            f"--nproc-per-node={max(1, self.num_gpus)}",
            *(f"--master-addr={self.address}", f"--master-port={self.port}"),
        )


class Launch(Enum):
    """How a program uses several processes."""

    ONE = "it is one process"
    SPAWN = "it starts one process per GPU itself (--num-gpus)"
    SHARE = "as SPAWN, and without a GPU one per CPU: its processes share the images"


@dataclass(frozen=True)
class Command:
    """A program and its inputs.

    program: a command of `wsis` ("train"), or a .py file.
    arguments: positional words.
    flags: values by name without dashes; True is a switch, False and None leave the flag out.
    config: configuration overrides, KEY: VALUE.
    """

    program: str
    arguments: tuple[str, ...] = ()
    flags: Mapping[str, FlagValue] = field(default_factory=dict)
    config: Mapping[str, str] = field(default_factory=dict)
    launch: Launch = Launch.ONE

    def inputs(self) -> dict[str, Any]:
        """What decides the results, as plain JSON values; equal on every machine."""
        flags = {name: _plain(value) for name, value in self.flags.items()}
        return {
            "program": self.program,
            "arguments": list(self.arguments),
            "flags": {name: value for name, value in flags.items() if value is not None},
            "config": dict(self.config),
        }

    def argv(self, machines: Machines) -> list[str]:
        """The words to run, or for a person to type."""
        words, spawn = [sys.executable], []
        if self.launch is not Launch.ONE:
            if machines.num_nodes > 1:
                words = list(machines.launcher)
            else:
                spawn = ["--num-gpus", str(machines.num_gpus)]
                if self.launch is Launch.SHARE and machines.num_gpus == 0:
                    spawn += ["--num-processes", str(len(os.sched_getaffinity(0)))]
        words += [*_program_words(self.program), *self.arguments, *spawn]
        for name, value in self.inputs()["flags"].items():
            values = [] if value is True else value if isinstance(value, list) else [value]
            words += [f"--{name}", *values]
        return words + [word for pair in self.config.items() for word in pair]


def _plain(value: FlagValue) -> str | bool | list[str] | None:
    if value is None or value is False:
        return None
    if value is True:
        return True
    return [str(item) for item in value] if isinstance(value, tuple) else str(value)


def _program_words(program: str) -> list[str]:
    """What Python is told to run a program."""
    if program.endswith(".py"):
        return [program]
    script = ROOT / "tools" / SCRIPTS.get(program, "")
    if not script.is_file():
        return ["-m", "wsis", program]
    here = Path.cwd()
    return [str(script.relative_to(here) if script.is_relative_to(here) else script)]


def python_path() -> str:
    """PYTHONPATH with which a program finds the packages of this checkout from any folder."""
    places = [str(ROOT), str(ROOT / "AdelaiDet"), os.environ.get("PYTHONPATH")]
    return os.pathsep.join(filter(None, places))
