"""Two processes on one device, joined by gloo: synchronized batch norms and training in step.

NCCL refuses two processes on one card; gloo does not. NCCL itself is therefore not checked here.
"""

import json
import tempfile
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from detectron2.engine import create_ddp_model
from detectron2.layers import get_norm
from detectron2.utils import comm

from .parity import exact_float32, relative_error
from .results import Check, Result, judged, skipped
from .scenes import NETWORKS, Context, Network
from .training import train

TIMEOUT = timedelta(minutes=2)  # of a collective: a process that died ends the check
CHANNELS = 8
STATISTICS_BOUND, IN_STEP_BOUND = 1e-4, 1e-6


def norms_of(device: torch.device) -> tuple[str, ...]:
    """The synchronized norms that run there; PyTorch's own needs a GPU."""
    return ("SyncBN", "naiveSyncBN") if device.type == "cuda" else ("naiveSyncBN",)


def share(batch: Any, rank: int) -> Any:
    """Half of a batch."""
    if isinstance(batch, dict):
        return {key: value.chunk(2)[rank] for key, value in batch.items()}
    half = len(batch) // 2
    return batch[rank * half : (rank + 1) * half]


def compare_statistics(rank: int, context: Context) -> float:
    """Largest error of outputs, gradients and statistics against batch norm on the whole batch."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(8, CHANNELS, 9, 7, generator=generator).to(context.device)
    weights = torch.randn(8, CHANNELS, 9, 7, generator=generator).to(context.device)

    def run(norm: nn.Module, x: Tensor, weight: Tensor) -> list[Tensor]:
        norm = norm.to(context.device).train()
        x = x.clone().requires_grad_()
        y = norm(x)
        (y * weight).sum().backward()
        return [y, x.grad, norm.running_mean, norm.running_var]

    errors = []
    with exact_float32():
        want = run(nn.BatchNorm2d(CHANNELS), pixels, weights)
        want[:2] = [share(x, rank) for x in want[:2]]
        for name in norms_of(context.device):
            norm = get_norm(name, CHANNELS)
            got = run(norm, share(pixels, rank), share(weights, rank))
            # The unbiased factor of the whole batch's variance is upstream's only difference.
            got[3] = got[3] if name == "SyncBN" else unbiased(got[3], pixels)
            errors += [relative_error([a], [b]) for a, b in zip(got, want, strict=True)]
    return max(errors)


def unbiased(variance: Tensor, pixels: Tensor) -> Tensor:
    """Running variance after one step of momentum 0.1 from 1, had it been unbiased."""
    count = pixels.numel() / pixels.shape[1]
    return 0.9 + (variance - 0.9) * count / (count - 1)


def train_in_step(network: Network, rank: int, context: Context) -> float:
    """Train with synchronized norms on halves of a batch; how far the processes' weights differ."""
    norm = norms_of(context.device)[0]
    model = network.make(context.scale, norm).to(context.device)
    index = {"device_ids": [context.device.index or 0]} if context.device.type == "cuda" else {}
    parallel = create_ddp_model(model, broadcast_buffers=False, **index)
    batch = network.batch(context.scale, 2 * network.batch_size)
    precision = "fp16" if context.device.type == "cuda" else "fp32"
    losses = train(parallel, share(batch, rank), context.scale.steps, precision)
    ratio = comm.all_gather(losses[-1] / losses[0] if losses else None)[0]
    if not ratio < 1:
        raise ValueError(f"the last loss is {ratio:.3g} times the first")
    flat = torch.cat([p.detach().float().flatten() for p in model.parameters()]).cpu()
    other = flat.clone()
    dist.broadcast(other, src=0)
    return relative_error([flat], [other])


TASKS: dict[str, Callable[[int, Context], float]] = {
    "statistics": compare_statistics,
    **{name: partial(train_in_step, network) for name, network in NETWORKS.items()},
}


def run_process(rank: int, task: str, context: Context, folder: str) -> None:
    """One of the two; writes its figure to `folder`."""
    if context.device.type == "cuda":
        torch.cuda.set_device(context.device)
    else:
        torch.set_num_threads(1)
    store = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=TIMEOUT)
    comm.create_local_process_group(2)
    try:
        figure = TASKS[task](rank, context)
        Path(folder, f"{rank}.json").write_text(json.dumps(figure), encoding="utf-8")
    finally:
        dist.destroy_process_group()


def check_pair(task: str, bound: float, note: str, title: str, context: Context) -> Result:
    """The larger figure of the two processes."""
    if not context.scale.two_processes:
        return skipped(title, "left out of --quick: it starts two processes")
    with tempfile.TemporaryDirectory(dir=context.folder) as folder:
        try:
            mp.spawn(run_process, args=(task, context, folder), nprocs=2)
        except mp.ProcessRaisedException as error:
            last_line = str(error).strip().splitlines()[-1]
            raise RuntimeError(f"process {error.error_index}: {last_line}") from error
        figures = [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(2)]
    return judged(title, max(figures), bound, note=note)


def checks() -> list[Check]:
    """Statistics, and a training of each network."""
    note = "output, gradient, statistics of half batches against BN of the whole"
    rows = [("SyncBN over gloo: statistics", "statistics", STATISTICS_BOUND, note)]
    note = "difference of the two processes' weights after training with synchronized norms"
    rows += [(f"SyncBN over gloo: {name}", name, IN_STEP_BOUND, note) for name in NETWORKS]
    return [Check(t, partial(check_pair, task, bound, n, t)) for t, task, bound, n in rows]
