"""Start a stage: in this process, in several that are spawned, or as one of those of torchrun.

Training, generation, refinement and evaluation all start here, so that each takes the same flags
and ends in the same way. `detectron2.engine.launch` does the work; this adds the value that the
first process returns, and the error of the process that failed first.
"""

import logging
import multiprocessing
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.engine.launch import launch as launch_processes
from detectron2.utils import comm

# Shares of a dataset end at different times, and a process that is done waits for the others.
SHARED_WORK_TIMEOUT = timedelta(hours=24)
RESULT = "result.pickle"


@dataclass(frozen=True)
class Job:
    """The processes of one run.

    num_gpus: on each machine, one process a GPU; 0 runs on the CPU.
    num_processes: on each machine, where num_gpus is 0.
    dist_url: `tcp://host:port` of machine 0; "auto" finds a free port on a single machine.
    """

    num_gpus: int = 1
    num_processes: int = 1
    num_machines: int = 1
    machine_rank: int = 0
    dist_url: str = "auto"


class RankError(RuntimeError):
    """A spawned process failed; the message is the traceback of the first one that did."""


def launch(
    job: Job,
    function: Callable[..., Any],
    *args: Any,
    timeout: timedelta = DEFAULT_TIMEOUT,
) -> Any:
    """Run `function(*args)` in every process of a job.

    Args:
        function: importable by name, since it is pickled for spawned processes.
        timeout: how long one process may wait for another.

    Returns:
        what it returns in the first process; None on the other machines of a job.

    Raises:
        RankError: where a spawned process fails.
    """
    # It warns of each process that it ends after another one failed; the error says enough.
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="wsis-") as name:
        folder = Path(name)
        try:
            launch_processes(
                _run,
                job.num_gpus,
                num_machines=job.num_machines,
                machine_rank=job.machine_rank,
                dist_url=job.dist_url,
                args=(folder, function, args),
                timeout=timeout,
                num_processes=job.num_processes,
            )
        except (ProcessRaisedException, ProcessExitedException) as error:
            raise RankError(_first_report(folder) or str(error)) from None
        except KeyboardInterrupt:
            for process in multiprocessing.active_children():
                process.terminate()
            raise
        result = folder / RESULT
        return pickle.loads(result.read_bytes()) if result.exists() else None


def device_of(job: Job) -> torch.device:
    """Where this process of the job computes.

    Raises:
        ValueError: the job wants GPUs, this machine has none.
    """
    if job.num_gpus == 0:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError(
            f"--num-gpus {job.num_gpus}, but no CUDA device was found; --num-gpus 0 runs on the CPU"
        )
    return torch.device("cuda", comm.get_local_rank())


def _run(folder: Path, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """One process: leave the first one's value, or in a spawned process the error, in `folder`."""
    try:
        result = function(*args)
    except Exception:
        if multiprocessing.parent_process() is not None:
            # The others then lose their connection, and which one ends first is left to chance.
            report = folder / f"{time.monotonic_ns():020d}.error"
            report.write_text(traceback.format_exc(), encoding="utf-8")
        raise
    if comm.is_main_process():
        (folder / RESULT).write_bytes(pickle.dumps(result))


def _first_report(folder: Path) -> str | None:
    reports = sorted(folder.glob("*.error"))
    return reports[0].read_text(encoding="utf-8") if reports else None
