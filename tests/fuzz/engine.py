"""Run readers on changed files in processes that may crash or hang, and count what happens.

Each input follows from the seed, the target and its number, so that the one at which a worker died
is made again by the process that watches it.
"""

import contextlib
import ctypes
import faulthandler
import json
import logging
import multiprocessing
import os
import resource
import shutil
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import torch

from tests.fuzz.documented import is_documented
from tests.fuzz.mutate import mutate
from tests.fuzz.targets import TARGETS, Target

CORPUS = Path(__file__).with_name("corpus")
MEMORY = 4 << 30  # bytes that a reader may take beside what a worker has
POLL = 0.05  # seconds
KEPT = 3  # inputs of one kind of failure that are saved
SIGNAL, HANG, EXCEPTION = "signals", "hangs", "undocumented exceptions"


@dataclass
class Report:
    """What came of a run. failures: how many inputs of each kind; kinds: of each place."""

    executions: int = 0
    seconds: float = 0.0
    failures: Counter = field(default_factory=Counter)
    kinds: Counter = field(default_factory=Counter)

    def __add__(self, other: "Report") -> "Report":
        return Report(
            self.executions + other.executions,
            self.seconds + other.seconds,
            self.failures + other.failures,
            self.kinds + other.kinds,
        )

    def __str__(self) -> str:
        counts = ", ".join(f"{self.failures[kind]} {kind}" for kind in (SIGNAL, HANG, EXCEPTION))
        return f"{self.executions} executions, {counts}"


def corpus(target: Target) -> list[tuple[str, bytes]]:
    """(name, content) of the files that a target starts from: valid ones, and some that failed."""
    folder = CORPUS / target.name
    found = [(path.name, path.read_bytes()) for path in sorted(folder.iterdir())]
    if not found:
        raise ValueError(f"{folder} has no file to start from")
    return found


def make_input(target: Target, files: list[tuple[str, bytes]], seed: int, number: int):
    """(name, content) of input `number`; the first ones are the files of the corpus themselves."""
    if number < len(files):
        return files[number]
    rng = Random(f"{seed} {target.name} {number}")
    name, data = rng.choice(files)
    form = target.form or FORMS.get(Path(name).suffix, "bytes")
    return name, mutate(data, rng.choice(files)[1], form, target.tokens, rng)


FORMS = {".json": "json", ".jsonl": "jsonl", ".npz": "zip", ".zip": "zip", ".pth": "zip"}


def fuzz(
    target: Target,
    executions: int,
    *,
    seed: int,
    out: Path,
    processes: int = 1,
    timeout: float = 20,
) -> Report:
    """Run a target on `executions` inputs; inputs that fail are saved in the folder `out`."""
    started = time.monotonic()
    workers = [
        _Worker(target, range(rank, executions, processes), seed, out, timeout)
        for rank in range(processes)
    ]
    while not all([worker.look() for worker in workers]):
        time.sleep(POLL)
    report = Report(executions, time.monotonic() - started)
    for worker in workers:
        report.failures += worker.failures
        report.kinds += worker.kinds
    return report


class _Worker:
    """A process that runs some inputs, started anew behind each one that ends it."""

    def __init__(self, target: Target, numbers: range, seed: int, out: Path, timeout: float):
        self.target, self.numbers, self.seed = target, numbers, seed
        self.out, self.timeout = out, timeout
        self.failures, self.kinds = Counter(), Counter()
        context = multiprocessing.get_context("fork")  # the readers' libraries are loaded already
        self._fork = context.Process
        self._place = context.RawValue(ctypes.c_longlong, 0)  # in `numbers`, of the present input
        self._found = context.SimpleQueue()
        self._start()

    def _start(self) -> None:
        self._since, self._last = time.monotonic(), self._place.value
        self._process = self._fork(target=self._work, daemon=True)
        self._process.start()

    def look(self) -> bool:
        """Whether all is done; sees to a process that has crashed or hangs."""
        while not self._found.empty():
            self._count(EXCEPTION, self._found.get())
        place, now = self._place.value, time.monotonic()
        if place != self._last:
            self._last, self._since = place, now
        if not self._process.is_alive():
            self._process.join()
            if self._process.exitcode == 0:
                return self._found.empty()
            self._lost(SIGNAL, f"exit code {self._process.exitcode}")
        elif now - self._since > self.timeout:
            self._process.kill()
            self._process.join()
            self._lost(HANG, f"{self.timeout:g} seconds")
        return False

    def _lost(self, kind: str, what: str) -> None:
        number = self.numbers[self._place.value]
        self._count(kind, f"{what}, input {number}")
        trace = self.out / f"{self.target.name}.trace"
        text = trace.read_text(errors="replace") if trace.exists() else ""
        _save(self.out, self.target, self.seed, number, kind, f"{what}\n{text}")
        self._place.value += 1
        self._start()

    def _count(self, kind: str, what: str) -> None:
        self.failures[kind] += 1
        self.kinds[f"{self.target.name}: {kind}: {what}"] += 1

    def _work(self) -> None:
        _limit_memory()
        files, kinds = corpus(self.target), Counter()
        with _scratch() as folder, open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 1)
            os.dup2(nothing.fileno(), 2)
            self.out.mkdir(parents=True, exist_ok=True)
            with open(self.out / f"{self.target.name}.trace", "w") as trace:
                faulthandler.enable(trace)
                read = self.target.open(folder / "files")
                for place in range(self._place.value, len(self.numbers)):
                    self._place.value = place
                    number = self.numbers[place]
                    name, content = make_input(self.target, files, self.seed, number)
                    path = folder / name
                    path.write_bytes(content)
                    fault = run_one(read, path)
                    if fault:
                        kind = fault.splitlines()[0]
                        kinds[kind] += 1
                        self._found.put(kind)
                        if kinds[kind] <= KEPT:
                            _save(self.out, self.target, self.seed, number, EXCEPTION, fault)


def run_one(read: Any, path: Path) -> str | None:
    """Read a file; None where that works or is refused as it should be, else what went wrong."""
    try:
        read(path)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        if is_documented(error, path):
            return None
        frame = traceback.extract_tb(error.__traceback__)[-1]
        head = f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}"
        text = "".join(traceback.format_exception(error))
        return f"{head}\n{text[:20000]}"
    return None


def _save(out: Path, target: Target, seed: int, number: int, kind: str, text: str) -> None:
    out.mkdir(parents=True, exist_ok=True)
    name, content = make_input(target, corpus(target), seed, number)
    stem = f"{target.name}-{seed}-{number}"
    form, _, rest = name.partition(".")
    (out / f"{stem}.{form}.{rest}").write_bytes(content)
    fields = {"target": target.name, "kind": kind, "seed": seed, "number": number, "what": text}
    (out / f"{stem}.failure.json").write_text(json.dumps(fields, indent=1))


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    """A folder in memory where there is one, gone at the end."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=memory if os.access(memory, os.W_OK) else None))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def chosen(names: list[str]) -> list[Target]:
    """The targets of these names, all of them for "all"."""
    if "all" in names:
        return list(TARGETS.values())
    unknown = [name for name in names if name not in TARGETS]
    if unknown:
        raise ValueError(f"target {unknown[0]!r}; expected all or one of {', '.join(TARGETS)}")
    return [TARGETS[name] for name in names]
