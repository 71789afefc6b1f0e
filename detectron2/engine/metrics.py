"""Losses of one step, collected from all ranks and recorded, at once or in the background."""

import math
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import torch
import torch.distributed as dist
from torch import Tensor

from detectron2.utils import comm
from detectron2.utils.events import get_event_storage

RankMetrics = tuple[float, dict[str, float]]  # seconds spent on data, value of each loss


def gather_metrics(
    loss_dict: Mapping[str, Tensor], data_time: float, group: dist.ProcessGroup | None = None
) -> list[RankMetrics]:
    """Metrics of every rank, on the main process; an empty list on the others."""
    # One copy from the device, not one per loss.
    scalars = [loss.detach().float().reshape(()) for loss in loss_dict.values()]
    values = torch.stack(scalars).cpu().tolist()
    return comm.gather((data_time, dict(zip(loss_dict, values, strict=True))), group=group)


def record_metrics(gathered: list[RankMetrics], iteration: int, prefix: str = "") -> None:
    """Put means over ranks and the largest data time into the storage, under `iteration`."""
    count = len(gathered)
    means = {name: sum(losses[name] for _, losses in gathered) / count for name in gathered[0][1]}
    total = sum(means.values())
    if not math.isfinite(total):
        raise FloatingPointError(
            f"training diverged: total loss {total} at iteration={iteration}. Losses: {means}"
        )
    scalars = {"data_time": max(seconds for seconds, _ in gathered), f"{prefix}total_loss": total}
    if len(means) > 1:
        scalars |= means
    storage = get_event_storage()
    for name, value in scalars.items():
        storage.put_scalar(name, value, cur_iter=iteration)


class BackgroundMetrics:
    """Gather metrics in one background thread, so that training does not wait for the device.

    Only the training thread touches the storage: each `write` first records what has arrived.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._pending: deque[tuple[Future, int, str]] = deque()
        # A group of its own: two threads must not mix their messages in one group.
        self._group = dist.new_group(backend="gloo") if comm.get_world_size() > 1 else None

    def write(
        self, loss_dict: Mapping[str, Tensor], data_time: float, iteration: int, prefix: str
    ) -> None:
        while self._pending and self._pending[0][0].done():
            self._record_oldest()
        losses = {name: loss.detach() for name, loss in loss_dict.items()}
        future = self._thread.submit(gather_metrics, losses, data_time, self._group)
        self._pending.append((future, iteration, prefix))

    def join(self) -> None:
        """Record everything, waiting for what is on its way; raises the first error."""
        while self._pending:
            self._record_oldest()

    def _record_oldest(self) -> None:
        future, iteration, prefix = self._pending.popleft()
        gathered = future.result()
        if comm.is_main_process():
            record_metrics(gathered, iteration, prefix)
