"""The few things that several processes (torchrun) need to agree on."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

# Processes match all images, or refine their share, before they meet, and NCCL's own limit is 10
# minutes. Should one die meanwhile, torchrun ends the others.
LONGEST_WAIT = timedelta(hours=24)


@dataclass(frozen=True)
class World:
    """This process among its peers; alone it is rank 0 of 1."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all."""
        if self.size > 1:
            dist.barrier()

    def gather(self, value: Any) -> list[Any]:
        """Everybody's value, on every rank, in rank order."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values


@contextmanager
def world(device: str | None) -> Iterator[World]:
    """Join the processes that torchrun started, if it did; leave them at the end.

    Args:
        device: "cpu", "cuda", "cuda:1", ...; None takes CUDA where there is one. Under torchrun
            "cuda" means the GPU of this process's local rank.
    """
    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {name}: this machine has no usable CUDA device; use cpu")
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
