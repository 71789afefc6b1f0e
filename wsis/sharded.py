"""Make a file of records in all processes of a job: resume, share, merge.

Generation and refinement both run through `write_sharded`. The output has the same bytes for any
number of processes, and for a run that was killed and continued by any other number.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from detectron2.utils import comm
from weaklabels.locks import job_lock
from weaklabels.shards import MergeReport, RecordShards, ShardWriter


@dataclass(frozen=True)
class Share:
    """What one process did.

    image_ids: ids of all images of the job, in the order of the output.
    failures: one message for each image of this process that could not be read.
    """

    image_ids: list[int]
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ShardReport:
    """What came of a job: the merged file, and the images that are missing in it."""

    merged: MergeReport
    failures: list[str]


Work = Callable[[set[int], ShardWriter], Share]


def write_sharded(
    shards: RecordShards, work: Work, visit: Callable[[dict[str, Any]], object] | None = None
) -> ShardReport | None:
    """Write the records that are missing, in every process of the job, and merge them in the first.

    The parts of an output with failures stay, so that the same command tries those images again.

    Args:
        shards: its settings are compared in the first process alone.
        work: gets the ids of finished images and the part of this process, and appends its share.
        visit: called in the first process with each merged record.

    Returns:
        the report in the first process, None in the others.

    Raises:
        ValueError: there are parts that were made with other settings, or another job writes the
            output.
    """
    with job_lock(shards.output, comm.is_main_process(), comm.all_gather):
        return _write_sharded(shards, work, visit)


def _write_sharded(
    shards: RecordShards, work: Work, visit: Callable[[dict[str, Any]], object] | None
) -> ShardReport | None:
    finished = _finished_ids(shards)
    with shards.writer(comm.get_rank(), comm.get_world_size()) as writer:
        share = work(finished, writer)
    comm.synchronize()  # waits as long as `launch` allows; with NCCL, all_gather waits 30 minutes
    failures = [message for rank in comm.all_gather(share.failures) for message in rank]
    report = None
    if comm.is_main_process():
        report = ShardReport(shards.merge(share.image_ids, visit), failures)
        if not failures:
            shards.remove()
    comm.synchronize()
    return report


def _finished_ids(shards: RecordShards) -> set[int]:
    """Open the parts in the first process; ids of the images that they hold, in all."""
    problem = None
    if comm.is_main_process():
        try:
            shards.open()
        except ValueError as error:
            problem = str(error)
    problem = comm.all_gather(problem)[0]
    if problem:  # in every process: the others would report no more than a lost connection
        raise ValueError(problem)
    finished = shards.finished_ids()
    comm.synchronize()  # nobody writes before everybody has read
    return finished
