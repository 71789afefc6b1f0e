"""Loading in a distributed training. Processes import this file, so it imports little."""

import os

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from detectron2.checkpoint import DetectionCheckpointer


def _load_in_one_of_two(rank: int, folder: str) -> None:
    """Rank 1 works in an empty folder, as on a machine that sees no checkpoint."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2
    )
    model = nn.Linear(2, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1 * (rank + 1))
    save_dir = os.path.join(folder, f"rank{rank}")
    checkpointer = DetectionCheckpointer(
        DistributedDataParallel(model), save_dir, save_to_disk=rank == 0, optimizer=optimizer
    )
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(5.0)
        checkpointer.save("a", iteration=3)
        for tensor in model.state_dict().values():
            tensor.fill_(-1.0)
    assert checkpointer.has_checkpoint()
    rest = checkpointer.resume_or_load("", resume=True)
    assert rest == {"iteration": 3}
    assert all((tensor == 5.0).all() for tensor in model.state_dict().values())
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert checkpointer.load_report.is_complete
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_processes_that_do_not_see_the_file_get_it_from_the_main_one(tmp_path):
    mp.spawn(_load_in_one_of_two, (str(tmp_path),), nprocs=2)
