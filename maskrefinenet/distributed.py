"""What the processes of one torchrun job share."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

# Processes match all images, or refine their share, before they first wait for each other; the
# default limit of NCCL is 10 minutes. If one dies, torchrun stops the others.
LONGEST_WAIT = timedelta(hours=24)


@dataclass(frozen=True)
class World:
    """Rank and device of this process; a single process is rank 0 of 1."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, in rank order, on every rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values


@contextmanager
def world(device: str | None) -> Iterator[World]:
    """Join the process group of torchrun, if there is one, and leave it at the end.

    Args:
        device: "cpu", "cuda", "cuda:1", ...; None takes CUDA if there is a GPU. Under torchrun
            "cuda" means the GPU of this process's local rank.
    """
    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {name}: CUDA is not available on this machine; use cpu")
    size, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    if name == "cuda" and size > 1:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    here = torch.device(name)
    if here.type == "cuda":
        torch.cuda.set_device(here)
    if size == 1:
        yield World(0, 1, here)
        return
    dist.init_process_group("nccl" if here.type == "cuda" else "gloo", timeout=LONGEST_WAIT)
    try:
        yield World(rank, size, here)
    finally:
        dist.destroy_process_group()
