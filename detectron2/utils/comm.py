"""Communication between the processes of a distributed job, or within a single process.

A "local" process runs on the same machine. In a distributed job, local ranks are known once
`create_local_process_group` was called, which `detectron2.engine.launch` does.
"""

import functools
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

_LOCAL_PROCESS_GROUP: dist.ProcessGroup | None = None
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
    """Make one process group per machine and remember the one of this process.

    Every process of the job must call it. Ranks must be contiguous within a machine.
    """
    global _LOCAL_PROCESS_GROUP
    num_machines, rest = divmod(get_world_size(), num_workers_per_machine)
    if rest:
        raise ValueError(
            f"{get_world_size()} processes cannot be split into machines of "
            f"{num_workers_per_machine}"
        )
    ranks = torch.arange(get_world_size()).view(num_machines, num_workers_per_machine).tolist()
    # torch requires every process to take part in making every group
    groups = [dist.new_group(ranks_of_machine) for ranks_of_machine in ranks]
    _LOCAL_PROCESS_GROUP = groups[get_rank() // num_workers_per_machine]


def get_local_process_group() -> dist.ProcessGroup:
    """The group of this machine's processes."""
    if _LOCAL_PROCESS_GROUP is None:
        raise ValueError(
            "this distributed job has no local process group: start it with "
            "detectron2.engine.launch(), or call create_local_process_group() in every process"
        )
    return _LOCAL_PROCESS_GROUP


def get_local_rank() -> int:
    """Index of this process among those of its machine."""
    return dist.get_rank(group=get_local_process_group()) if _is_distributed() else 0


def get_local_size() -> int:
    """Number of processes on this machine."""
    return dist.get_world_size(group=get_local_process_group()) if _is_distributed() else 1


def is_main_process() -> bool:
    """Whether this process has rank 0."""
    return get_rank() == 0


def synchronize() -> None:
    """Wait until every process of the job has reached this call."""
    if get_world_size() > 1:
        uses_nccl = dist.get_backend() == dist.Backend.NCCL
        # NCCL would guess the device, which can block when the ranks guess differently
        dist.barrier(device_ids=[torch.cuda.current_device()] if uses_nccl else None)


@functools.cache
def _gloo_twin(world: dist.ProcessGroup) -> dist.ProcessGroup:
    """A gloo group of the same processes; made once, since that is slow and takes all of them."""
    return dist.new_group(backend="gloo")


def _object_group(group: dist.ProcessGroup | None) -> dist.ProcessGroup | None:
    """A group that can exchange Python objects, by default all processes; None for one process."""
    if get_world_size() == 1:
        return None
    if group is None:
        group = dist.group.WORLD
        if dist.get_backend() == dist.Backend.NCCL:  # which moves GPU tensors only
            group = _gloo_twin(group)
    return group if dist.get_world_size(group) > 1 else None


def all_gather(data: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """The `data` (any picklable object) of every process, in rank order, in every process."""
    group = _object_group(group)
    if group is None:
        return [data]
    gathered: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(gathered, data, group=group)
    return gathered


def gather(data: Any, dst: int = 0, group: dist.ProcessGroup | None = None) -> list[Any]:
    """The `data` of every process in rank order, in process `dst`; an empty list elsewhere."""
    group = _object_group(group)
    if group is None:
        return [data]
    gathered = [None] * dist.get_world_size(group) if get_rank() == dst else None
    dist.gather_object(data, gathered, dst=dst, group=group)
    return gathered or []


def shared_random_seed() -> int:
    """A random number from numpy's generator of rank 0, the same in every process.

    All processes must call it together.
    """
    return all_gather(int(np.random.randint(_SEED_BOUND)))[0]


def reduce_dict(
    input_dict: dict[str, torch.Tensor], average: bool = True
) -> dict[str, torch.Tensor]:
    """Sum or average scalar tensors over processes; only rank 0 gets the result.

    Every process must give the same keys, with tensors of one shape.
    """
    if get_world_size() == 1:
        return input_dict
    keys = sorted(input_dict)  # the same order in every process
    packed = torch.stack([input_dict[key].detach() for key in keys])
    dist.reduce(packed, dst=0)
    divisor = get_world_size() if average and is_main_process() else 1
    return dict(zip(keys, packed / divisor, strict=True))
