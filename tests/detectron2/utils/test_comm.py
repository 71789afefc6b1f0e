"""Communication without a process group, and between two gloo processes."""

import os
import socket

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from detectron2.utils import comm


def test_without_a_process_group_the_world_is_one_process():
    assert (comm.get_world_size(), comm.get_rank()) == (1, 0)
    assert (comm.get_local_size(), comm.get_local_rank()) == (1, 0)
    assert comm.is_main_process()
    comm.synchronize()
    assert comm.all_gather({"a": 1}) == comm.gather({"a": 1}) == [{"a": 1}]
    scalars = {"loss": torch.tensor(2.0)}
    assert comm.reduce_dict(scalars) is scalars
    np.random.seed(3)
    seed = comm.shared_random_seed()
    np.random.seed(3)
    assert comm.shared_random_seed() == seed


def test_local_group_must_have_been_made(monkeypatch):
    # Another test of this process may have made one.
    monkeypatch.setattr(comm, "_LOCAL_PROCESS_GROUP", None)
    with pytest.raises(ValueError, match="create_local_process_group"):
        comm.get_local_process_group()


def run_process(rank: int, port: int, folder: str) -> None:
    """Record what each function gives on this rank."""
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, world_size=2, rank=rank)
    result = {}
    try:
        comm.create_local_process_group(3)
    except ValueError as error:
        result["bad_split"] = str(error)
    comm.create_local_process_group(1)  # two machines of one process
    result["machines_of_1"] = (comm.get_local_rank(), comm.get_local_size())
    comm.create_local_process_group(2)
    result["machine_of_2"] = (comm.get_local_rank(), comm.get_local_size())
    result["world"] = (comm.get_rank(), comm.get_world_size(), comm.is_main_process())
    data = {"rank": rank, "payload": "x" * (10 * rank)}
    result["all_gather"] = comm.all_gather(data)
    result["local_gather"] = comm.all_gather(rank, group=comm.get_local_process_group())
    result["gather"] = comm.gather(data)
    result["gather_at_1"] = comm.gather(rank, dst=1)
    np.random.seed(rank)
    result["seed"] = comm.shared_random_seed()
    own = {"b": torch.tensor(1.0 + rank), "a": torch.tensor(10.0 * rank)}
    result["mean"] = {k: v.item() for k, v in comm.reduce_dict(own).items()}
    result["sum"] = {k: v.item() for k, v in comm.reduce_dict(own, average=False).items()}
    comm.synchronize()
    dist.destroy_process_group()
    torch.save(result, os.path.join(folder, f"{rank}.pth"))


@pytest.mark.slow
def test_two_processes(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.start_processes(run_process, args=(port, str(tmp_path)), nprocs=2, start_method="spawn")
    first, second = (torch.load(tmp_path / f"{rank}.pth", weights_only=True) for rank in (0, 1))
    assert "2 processes" in first["bad_split"] and "3" in first["bad_split"]
    assert (first["world"], second["world"]) == ((0, 2, True), (1, 2, False))
    assert first["machines_of_1"] == second["machines_of_1"] == (0, 1)
    assert (first["machine_of_2"], second["machine_of_2"]) == ((0, 2), (1, 2))
    payloads = [{"rank": 0, "payload": ""}, {"rank": 1, "payload": "x" * 10}]
    assert first["all_gather"] == second["all_gather"] == first["gather"] == payloads
    assert second["gather"] == first["gather_at_1"] == []
    assert second["gather_at_1"] == first["local_gather"] == [0, 1]
    assert first["seed"] == second["seed"]
    assert first["mean"] == {"a": 5.0, "b": 1.5} and first["sum"] == {"a": 10.0, "b": 3.0}
