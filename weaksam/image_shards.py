"""Work on images in all processes of a job: a file (shard) an image, so that a killed run goes on.

The shards depend on images and settings alone. Each process has one thread, because sums depend on
how many threads share them.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from detectron2.utils import comm
from weaklabels.files import read_json, write_json


def as_json(value: Any) -> Any:
    """The value as it comes back from a JSON file: tuples are lists, keys are text."""
    return json.loads(json.dumps(value))


def claim(manifest: Path, identity: dict[str, Any], what: str) -> None:
    """Write down what shards are made from, or refuse to mix them with those of another run.

    Args:
        identity: all that the shards depend on, as JSON gives it back.
        what: what the shards hold, for the message.

    Raises:
        ValueError: in every process of the job, where `manifest` says otherwise.
    """
    problem = None
    if comm.is_main_process():
        if manifest.is_file():
            problem = difference(read_json(manifest), identity)
        else:
            write_json(manifest, identity)
    problem = comm.all_gather(problem)[0]
    if problem:
        raise ValueError(
            f"{manifest.parent} holds {what} made with other {problem}; give another output, or "
            "remove it"
        )


def difference(before: Any, now: dict[str, Any]) -> str:
    """Names of the values of `now` that `before` does not have, "" where it has all."""
    if not isinstance(before, dict):
        return ", ".join(now)
    return ", ".join(key for key, value in now.items() if before.get(key) != value)


def make_shards(shards: Sequence[Path], make: Callable[[int], object], label: str) -> None:
    """Make the shards that are missing, each process its share; return when all are there.

    Args:
        make: writes shard number i, whole or not at all.
        label: of the progress bar.
    """
    missing = [index for index, shard in enumerate(shards) if not shard.is_file()]
    comm.synchronize()  # nobody writes before everybody has looked
    mine = missing[comm.get_rank() :: comm.get_world_size()]
    quiet = not comm.is_main_process()
    with one_thread():
        for index in tqdm(mine, label, unit="image", disable=quiet):
            make(index)
    comm.synchronize()


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread, then as many as before."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
