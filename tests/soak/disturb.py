"""Run a command in a process group of its own, and disturb it at a random moment."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

KILL, TERM, FULL, SECOND, WORKER = "SIGKILL", "SIGTERM", "disk full", "second run", "dead worker"
KINDS = (KILL, TERM, FULL, SECOND, WORKER)
SMALLEST, LARGEST = 1 << 10, 1 << 23  # bytes that a file may have on the full disk
IN_USE = "is being written by"
REFUSED = 2  # exit code of a second run
PATIENCE = 120.0  # seconds for a run to end by itself, or for a second one to be refused


@dataclass
class Disturber:
    """Starts a command and disturbs it.

    words: the command.  log: what it prints is appended there.  seconds: that it takes in peace.
    faults: what a disturbance should not have done, in words.
    """

    words: list[str]
    log: Path
    seconds: float
    rng: Random
    counts: Counter = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def start(self, largest_file: int | None = None) -> subprocess.Popen:
        """The command, started; no file of it may grow beyond `largest_file` bytes."""

        def limit() -> None:
            if largest_file is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))

        # The limit holds for the log, too, so a pipe takes what is printed there.
        with open(self.log, "ab") as log:
            return subprocess.Popen(
                self.words,
                stdout=log if largest_file is None else subprocess.DEVNULL,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=limit,
            )

    def finish(self) -> int:
        """Run the command to its end; its exit code."""
        return self.start().wait()

    def disturb(self) -> str:
        """Start the command and disturb it once; the kind of disturbance."""
        kind = self.rng.choice(KINDS)
        self.counts[kind] += 1
        if kind == FULL:
            size = int(SMALLEST * (LARGEST / SMALLEST) ** self.rng.random())
            self._wait(self.start(size))
            return kind
        process = self.start()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(self.rng.uniform(0.02, 0.9) * self.seconds)
        if process.poll() is None:
            WAYS[kind](self, process)
        self._stop(process)
        return kind

    def _stop(self, process: subprocess.Popen) -> None:
        """End a group for good, so that the next start finds nobody."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def _wait(self, process: subprocess.Popen) -> None:
        try:
            process.wait(PATIENCE + 2 * self.seconds)
        except subprocess.TimeoutExpired:
            self.faults.append("a run did not end by itself")
        self._stop(process)

    def kill(self, process: subprocess.Popen) -> None:
        os.killpg(process.pid, signal.SIGKILL)

    def terminate(self, process: subprocess.Popen) -> None:
        os.killpg(process.pid, signal.SIGTERM)
        self._wait(process)

    def second(self, process: subprocess.Popen) -> None:
        """The same command beside the first, which has to refuse it."""
        other = subprocess.run(
            self.words, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        if process.poll() is None and (other.returncode != REFUSED or IN_USE not in other.stderr):
            self.faults.append(f"a second run ended with {other.returncode}: {other.stderr[-500:]}")

    def kill_worker(self, process: subprocess.Popen) -> None:
        """Kill one process at the end of the tree: a data loader's worker, or a stage's own."""
        leaves = [pid for pid in descendants(process.pid) if not descendants(pid)]
        if leaves:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.rng.choice(leaves), signal.SIGKILL)
        self._wait(process)


WAYS: dict[str, Callable[[Disturber, subprocess.Popen], None]] = {
    KILL: Disturber.kill,
    TERM: Disturber.terminate,
    SECOND: Disturber.second,
    WORKER: Disturber.kill_worker,
}


def descendants(pid: int) -> list[int]:
    """All processes that a process has started, and these in turn."""
    found = []
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(child) for child in tasks.read_text().split()]
    return found + [pid for child in found for pid in descendants(child)]


def python(*words: str) -> list[str]:
    return [sys.executable, *words]


def timed(run: Callable[[], int]) -> tuple[int, float]:
    started = time.monotonic()
    return run(), time.monotonic() - started
