"""Talk between the processes of a distributed job; without one, the world is this process alone.

A "local" process is one of the same machine. `create_local_process_group` must have been called
(`detectron2.engine.launch` does) before local ranks are asked for in a distributed job.
"""

import functools
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

_LOCAL_PROCESS_GROUP: dist.ProcessGroup | None = None
_MISSING_LOCAL_GROUP = (
    "this distributed job has no local process group: start it by detectron2.engine.launch(), or "
    "call detectron2.utils.comm.create_local_process_group() in every process"
)
_SEED_BOUND = 2**31


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def get_world_size() -> int:
    """Number of processes of the job."""
    return dist.get_world_size() if _is_distributed() else 1


def get_rank() -> int:
    """Index of this process in the job."""
    return dist.get_rank() if _is_distributed() else 0


def create_local_process_group(num_workers_per_machine: int) -> None:
    """Make one process group a machine and remember that of this process.

    Every process of the job must call it. Ranks are taken to be contiguous within a machine.
    """
    global _LOCAL_PROCESS_GROUP
    world_size = get_world_size()
    if world_size % num_workers_per_machine != 0:
        raise ValueError(
            f"{world_size} processes cannot be split into machines of {num_workers_per_machine}"
        )
    this_machine = get_rank() // num_workers_per_machine
    for machine in range(world_size // num_workers_per_machine):
        first = machine * num_workers_per_machine
        # torch requires every process to take part in making every group
        group = dist.new_group(list(range(first, first + num_workers_per_machine)))
        if machine == this_machine:
            _LOCAL_PROCESS_GROUP = group


def get_local_process_group() -> dist.ProcessGroup:
    """The group of this machine's processes."""
    if _LOCAL_PROCESS_GROUP is None:
        raise ValueError(_MISSING_LOCAL_GROUP)
    return _LOCAL_PROCESS_GROUP


def get_local_rank() -> int:
    """Index of this process among those of its machine."""
    return dist.get_rank(group=get_local_process_group()) if _is_distributed() else 0


def get_local_size() -> int:
    """Number of processes on this machine."""
    return dist.get_world_size(group=get_local_process_group()) if _is_distributed() else 1


def is_main_process() -> bool:
    """True in the process of rank 0."""
    return get_rank() == 0


def synchronize() -> None:
    """Wait until every process of the job has come here."""
    if get_world_size() == 1:
        return
    if dist.get_backend() == dist.Backend.NCCL:
        # naming the device keeps NCCL from guessing it, which can block when ranks disagree
        dist.barrier(device_ids=[torch.cuda.current_device()])
    else:
        dist.barrier()


def _get_global_gloo_group() -> dist.ProcessGroup:
    """A group of all processes that moves CPU data: the world's own one unless that is NCCL."""
    if dist.get_backend() != dist.Backend.NCCL:
        return dist.group.WORLD
    return _make_gloo_group(dist.group.WORLD)


@functools.lru_cache
def _make_gloo_group(world: dist.ProcessGroup) -> dist.ProcessGroup:
    """The gloo twin of `world`, made on first use: making one is slow, and takes all processes."""
    return dist.new_group(backend="gloo")


def all_gather(data: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """The `data` (any picklable object) of every process, in rank order, in every process."""
    if get_world_size() == 1:
        return [data]
    group = _get_global_gloo_group() if group is None else group
    world_size = dist.get_world_size(group)
    if world_size == 1:
        return [data]
    output: list[Any] = [None] * world_size
    dist.all_gather_object(output, data, group=group)
    return output


def gather(data: Any, dst: int = 0, group: dist.ProcessGroup | None = None) -> list[Any]:
    """The `data` of every process in rank order, in process `dst`; an empty list elsewhere."""
    if get_world_size() == 1:
        return [data]
    group = _get_global_gloo_group() if group is None else group
    world_size = dist.get_world_size(group)
    if world_size == 1:
        return [data]
    if dist.get_rank() != dst:
        dist.gather_object(data, None, dst=dst, group=group)
        return []
    output: list[Any] = [None] * world_size
    dist.gather_object(data, output, dst=dst, group=group)
    return output


def shared_random_seed() -> int:
    """A random number from numpy's generator of rank 0, the same in every process.

    All processes must call it together; it is how samplers agree on one shuffling.
    """
    return all_gather(int(np.random.randint(_SEED_BOUND)))[0]


def reduce_dict(
    input_dict: dict[str, torch.Tensor], average: bool = True
) -> dict[str, torch.Tensor]:
    """Sum or average scalar tensors over processes; only rank 0 gets the reduced values.

    Every process must give the same keys, with tensors of one shape.
    """
    world_size = get_world_size()
    if world_size < 2:
        return input_dict
    with torch.no_grad():
        names = sorted(input_dict)  # one order in every process
        values = torch.stack([input_dict[name] for name in names], dim=0)
        dist.reduce(values, dst=0)
        if dist.get_rank() == 0 and average:
            values /= world_size
        return dict(zip(names, values, strict=True))
