import os

import pytest
import torch

from detectron2.engine import launch
from detectron2.utils import comm


def add_ranks(path, expected_world):
    """Run in each process; writes what all processes together know."""
    assert comm.get_world_size() == expected_world
    assert comm.get_local_size() == expected_world
    total = torch.tensor(comm.get_rank() + 1)
    if expected_world > 1:
        torch.distributed.all_reduce(total)
    if comm.is_main_process():
        path.write_text(f"{int(total)} of {comm.get_world_size()}")


def test_one_process_runs_in_place(tmp_path):
    launch(add_ranks, 1, args=(tmp_path / "out", 1))
    assert (tmp_path / "out").read_text() == "1 of 1"


@pytest.mark.slow
def test_cpu_processes_talk_through_gloo(tmp_path):
    launch(add_ranks, 0, args=(tmp_path / "out", 2), num_processes=2)
    assert (tmp_path / "out").read_text() == "3 of 2"


def write_listening_addresses(path):
    """Where the sockets of this process listen, as /proc tells them: hex addresses."""
    torch.distributed.all_reduce(torch.zeros(1))
    own = {os.readlink(entry.path) for entry in os.scandir("/proc/self/fd") if entry.is_symlink()}
    found = []
    for table in ("/proc/self/net/tcp", "/proc/self/net/tcp6"):
        for line in open(table).read().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == "0A" and f"socket:[{inode}]" in own:
                found.append(local.split(":")[0])
    (path / str(comm.get_rank())).write_text(" ".join(found))


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/net/tcp"), reason="Linux tells them there")
def test_processes_of_one_machine_listen_on_loopback_alone(tmp_path):
    launch(write_listening_addresses, 0, args=(tmp_path,), num_processes=2)
    found = " ".join((tmp_path / str(rank)).read_text() for rank in range(2)).split()
    loopback = {"0100007F", "00000000000000000000000001000000"}
    assert found and set(found) <= loopback


def write_threads(path):
    (path / str(comm.get_rank())).write_text(str(torch.get_num_threads()))


@pytest.mark.slow
def test_cpu_processes_share_the_cores(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    launch(write_threads, 0, args=(tmp_path,), num_processes=2)
    threads = [int((tmp_path / str(rank)).read_text()) for rank in range(2)]
    assert sum(threads) <= max(2, os.cpu_count())


def test_torchrun_environment_is_used(tmp_path, monkeypatch):
    values = {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)

    def main(path):
        assert torch.distributed.is_initialized()
        assert torch.distributed.get_backend() == "gloo"
        path.write_text("joined")

    launch(main, 0, args=(tmp_path / "out",))
    assert (tmp_path / "out").read_text() == "joined"
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(num_gpus_per_machine=2, num_processes=2), "--num-gpus 0"),
        (dict(num_gpus_per_machine=0, num_processes=0), "0 processes"),
        (dict(num_gpus_per_machine=1, num_machines=2, machine_rank=2), "machine 2 of 2"),
        (dict(num_gpus_per_machine=0, num_machines=2, dist_url="auto"), "--dist-url"),
    ],
)
def test_impossible_jobs_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        launch(print, **arguments)


def test_missing_gpus_are_named():
    if torch.cuda.device_count() >= 64:
        pytest.skip("this machine has that many GPUs")
    with pytest.raises(ValueError, match="64 GPUs asked for.*--num-processes"):
        launch(print, 64)
