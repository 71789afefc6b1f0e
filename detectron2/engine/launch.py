"""Run a function in one process or in several, spawned here or started by torchrun."""

import os
import socket
import tempfile
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from detectron2.utils import comm

DEFAULT_TIMEOUT = timedelta(minutes=30)
TORCHRUN_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR")


def launch(
    main_func: Callable[..., Any],
    num_gpus_per_machine: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str | None = None,
    args: Sequence[Any] = (),
    timeout: timedelta = DEFAULT_TIMEOUT,
    *,
    num_processes: int = 1,
) -> None:
    """Run `main_func(*args)` in every process of a job.

    Under torchrun (its environment variables are set), this process joins the process group and
    runs the function. Otherwise one process is spawned for each GPU; if `num_gpus_per_machine` is
    0, `num_processes` are spawned on the CPU and communicate through gloo. A job of one process
    runs in this one.

    Args:
        main_func: must be importable by name (it is pickled for the spawned processes).
        num_gpus_per_machine: processes on each machine, one for each GPU.
        num_machines: call `launch` once on each of them, with its own `machine_rank`.
        machine_rank: from 0 to `num_machines - 1`.
        dist_url: `tcp://host:port` of machine 0, where any host may connect. None or "auto", on
            one machine: its processes meet through a file, and talk on the loopback interface only.
        timeout: longest wait in a collective operation.
        num_processes: processes on each machine when no GPU is used.
    """
    if all(name in os.environ for name in TORCHRUN_VARIABLES):
        _run_under_torchrun(main_func, num_gpus_per_machine, args, timeout)
        return
    use_gpu = num_gpus_per_machine > 0
    if use_gpu and num_processes > 1:
        raise ValueError(
            f"got {num_gpus_per_machine} GPUs and {num_processes} CPU processes per machine: CPU "
            "processes need --num-gpus 0"
        )
    local_size = num_gpus_per_machine if use_gpu else num_processes
    world_size = local_size * num_machines
    if world_size < 1 or not 0 <= machine_rank < num_machines:
        raise ValueError(
            f"cannot launch {local_size} processes on machine {machine_rank} of {num_machines}"
        )
    if world_size == 1:
        main_func(*args)
        return
    if use_gpu and torch.cuda.device_count() < local_size:
        raise ValueError(
            f"{local_size} GPUs asked for, {torch.cuda.device_count()} found. To run on the CPU, "
            "add --num-gpus 0 --num-processes N"
        )
    group = {"init_method": dist_url, "world_size": world_size, "timeout": timeout}
    if dist_url in (None, "auto"):
        if num_machines > 1:
            raise ValueError("several machines need --dist-url tcp://HOST_OF_MACHINE_0:PORT")
        with tempfile.TemporaryDirectory(prefix="processes-") as folder:  # for this user only
            group["init_method"] = f"file://{folder}/rendezvous"
            _spawn(main_func, args, local_size, machine_rank, use_gpu, group)
    else:
        _spawn(main_func, args, local_size, machine_rank, use_gpu, group)


def _spawn(
    main_func: Callable[..., Any],
    args: Sequence[Any],
    local_size: int,
    machine_rank: int,
    use_gpu: bool,
    group: dict[str, Any],
) -> None:
    job = (main_func, args, local_size, machine_rank, use_gpu, group)
    mp.spawn(_spawned_worker, nprocs=local_size, args=job, daemon=False)


def _use_loopback() -> None:
    """Let processes of one machine talk where no other machine hears or reaches them.

    What they send is unpickled. The user may name another interface.
    """
    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    for backend in ("GLOO", "NCCL"):
        os.environ.setdefault(f"{backend}_SOCKET_IFNAME", loopback)


def _spawned_worker(
    local_rank: int,
    main_func: Callable[..., Any],
    args: Sequence[Any],
    local_size: int,
    machine_rank: int,
    use_gpu: bool,
    group: dict[str, Any],
) -> None:
    if group["world_size"] == local_size:
        _use_loopback()
    rank = machine_rank * local_size + local_rank
    _join_and_run(main_func, args, local_rank, local_size, use_gpu, rank=rank, **group)


def _run_under_torchrun(
    main_func: Callable[..., Any], num_gpus: int, args: Sequence[Any], timeout: timedelta
) -> None:
    local_rank, local_size = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    use_gpu = num_gpus > 0 and torch.cuda.device_count() >= local_size
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    group = {"init_method": "env://", "world_size": world_size, "timeout": timeout}
    _join_and_run(main_func, args, local_rank, local_size, use_gpu, rank=rank, **group)


def _join_and_run(
    main_func: Callable[..., Any],
    args: Sequence[Any],
    local_rank: int,
    local_size: int,
    use_gpu: bool,
    **group: Any,
) -> None:
    """Join the process group described by `group`, run `main_func`, leave the group."""
    if use_gpu:
        # Before the first collective: NCCL uses the current device.
        torch.cuda.set_device(local_rank)
    elif "OMP_NUM_THREADS" not in os.environ:
        # Otherwise each process would use every core and slow down the others.
        torch.set_num_threads(max(1, torch.get_num_threads() // local_size))
    dist.init_process_group("nccl" if use_gpu else "gloo", **group)
    comm.create_local_process_group(local_size)
    # Wait here, so that slow starters do not run into the timeout of the first collective.
    comm.synchronize()
    try:
        main_func(*args)
    finally:
        dist.destroy_process_group()
