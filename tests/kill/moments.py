"""Run a stage in a process that kills itself at a chosen moment, as SIGKILL by somebody else does.

Moments are the steps of writing: a file is opened under its temporary name, is put on the disk,
gets its name; a record's line is half written; an annotation is added; an optimizer is about to
step. They are counted, so that the same number is the same moment.
"""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

import weaklabels.files
from weaklabels.coco import CocoWriter
from weaklabels.shards import ShardWriter

Stage = Callable[[Path], int]  # writes below a folder; the exit code
PRINTED = "printed.txt"


class Moments:
    """Counts the moments of this process, and kills it at number `last`; None: never."""

    def __init__(self, last: int | None):
        self.count, self.last = 0, last

    def one(self, before: Callable[[], object] = lambda: None) -> None:
        self.count += 1
        if self.count == self.last:
            before()
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(self) -> None:
        """Put moments into all that writes."""
        append = ShardWriter.append

        def append_in_two(writer: ShardWriter, record: dict[str, Any]) -> None:
            self.one(lambda: half_a_line(writer))
            append(writer, record)

        ShardWriter.append = append_in_two
        for place, name in (
            (os, "replace"),
            (os, "fsync"),
            (weaklabels.files, "open_locked"),
            (CocoWriter, "add"),
        ):
            setattr(place, name, self._followed(getattr(place, name)))
        register_optimizer_step_pre_hook(lambda *_: self.one())

    def _followed(self, call: Callable) -> Callable:
        """The function, with a moment behind each call of it."""

        def followed(*args: Any, **kwargs: Any) -> Any:
            result = call(*args, **kwargs)
            self.one()
            return result

        return followed


def half_a_line(writer: ShardWriter) -> None:
    writer._handle.write(b'{"image_id": 1, "inst')
    writer._handle.flush()


def run(stage: Stage, folder: Path, last: int | None = None) -> tuple[int, int]:
    """(exit code, moments) of a stage in a process of its own, killed at moment `last`."""
    context = multiprocessing.get_context("fork")
    passed = context.RawValue("q", 0)
    folder.mkdir(exist_ok=True)

    def work() -> None:
        moments = Moments(last)
        moments.watch()
        with open(folder / PRINTED, "a") as log:
            for stream in (1, 2):
                os.dup2(log.fileno(), stream)
        torch.set_num_threads(1)
        code = stage(folder)
        passed.value = moments.count
        sys.stdout.flush()
        os._exit(code)

    process = context.Process(target=work)
    process.start()
    process.join()
    return process.exitcode, passed.value


def killed_on_the_way(stage: Stage, folder: Path, total: int, kills: int) -> int:
    """Run a stage to its end with up to `kills` kills before; how many these were.

    Args:
        total: moments of an undisturbed run. A later start has fewer left.
    """
    rng = Random(total)
    early = [1, 2, 3]
    for number in range(kills):
        last = early[number] if number < len(early) else rng.randint(1, max(4, total // 3))
        code, _ = run(stage, folder, last)
        if code == 0:
            return number
        assert code == -signal.SIGKILL, printed(folder)
    code, _ = run(stage, folder)
    assert code == 0, printed(folder)
    return kills


def printed(folder: Path) -> str:
    return (folder / PRINTED).read_text()[-3000:]
