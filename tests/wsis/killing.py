"""Run a program, kill it with all that it started, look at what its stages say."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from wsis.runner import ROOT
from wsis.runner.markers import STARTED, read_marker

PATIENCE = 30.0  # seconds for a stage to be marked as started once it is announced


def start(words: Sequence[str], datasets: Path, output: Path) -> subprocess.Popen:
    """A run of a script in a process group of its own, on the CPU."""
    given = {"OUTPUT_DIR": str(output), "DETECTRON2_DATASETS": str(datasets)}
    return subprocess.Popen(
        [*words],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "NUM_GPUS": "0"} | given,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def state(output: Path, stage: str) -> str | None:
    """What the marker of a stage says."""
    marker = read_marker(output / "stages" / f"{stage}.json")
    return marker and marker.state


def kill_in(stage: str, begin: Callable[[], subprocess.Popen], output: Path, work: str) -> None:
    """Kill a run in a stage, once it has announced it and printed `work`."""
    process = begin()
    reached, lines = False, []
    for line in process.stdout:
        lines.append(line)
        reached = reached or f"] {stage}: " in line
        if reached and work in line:
            break
    latest = time.monotonic() + PATIENCE
    while reached and state(output, stage) != STARTED and time.monotonic() < latest:
        time.sleep(0.01)
    assert process.poll() is None, "".join(lines[-30:])
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    assert state(output, stage) == STARTED


def finish(process: subprocess.Popen) -> str:
    """What a run prints when it is left to run to its end."""
    printed, _ = process.communicate()
    assert process.returncode == 0, printed[-3000:]
    return printed
