"""Hooks that look at speed and memory: torch's profiler and CUDA memory figures."""

import logging
import os
from collections.abc import Callable

import torch

from detectron2.engine.train_loop import HookBase, TrainerBase

_MEGABYTE = 1024.0 * 1024.0


class TorchProfiler(HookBase):
    """Run torch's profiler in the iterations for which `enable_predicate(trainer)` is true.

    Writes one trace an iteration under `output_dir`: for TensorBoard (`save_tensorboard`), or a
    Chrome trace `profiler-trace-iter{N}.json`. A table of operators is logged.
    """

    def __init__(
        self,
        enable_predicate: Callable[[TrainerBase], bool],
        output_dir: str,
        *,
        activities: list[torch.profiler.ProfilerActivity] | None = None,
        save_tensorboard: bool = True,
    ) -> None:
        self._enable_predicate = enable_predicate
        self._output_dir = output_dir
        self._activities = activities
        self._save_tensorboard = save_tensorboard
        self._profiler: torch.profiler.profile | None = None

    def _trace_handler(self, iteration: int) -> Callable[[torch.profiler.profile], None]:
        if self._save_tensorboard:
            return torch.profiler.tensorboard_trace_handler(
                os.path.join(self._output_dir, "log"), worker_name=f"iter{iteration}"
            )
        path = os.path.join(self._output_dir, f"profiler-trace-iter{iteration}.json")
        return lambda profiler: profiler.export_chrome_trace(path)

    def before_step(self) -> None:
        if not self._enable_predicate(self.trainer):
            return
        os.makedirs(self._output_dir, exist_ok=True)
        self._profiler = torch.profiler.profile(
            activities=self._activities,
            on_trace_ready=self._trace_handler(self.trainer.iter),
            record_shapes=True,
            profile_memory=True,
        )
        self._profiler.__enter__()

    def after_step(self) -> None:
        if self._profiler is None:
            return
        self._profiler.__exit__(None, None, None)
        table = self._profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=20)
        logging.getLogger(__name__).info("Profile of iteration %d:\n%s", self.trainer.iter, table)
        self._profiler = None


class AutogradProfiler(TorchProfiler):
    """The profiler under its older name and arguments: Chrome traces, CUDA where `use_cuda`."""

    def __init__(
        self,
        enable_predicate: Callable[[TrainerBase], bool],
        output_dir: str,
        *,
        use_cuda: bool = True,
    ) -> None:
        activities = [torch.profiler.ProfilerActivity.CPU]
        if use_cuda and torch.cuda.is_available():
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        super().__init__(
            enable_predicate, output_dir, activities=activities, save_tensorboard=False
        )


class TorchMemoryStats(HookBase):
    """Log CUDA memory (reserved, allocated, and their peaks, in MB) every `period` iterations.

    Stops after `max_runs` reports; without CUDA it says nothing.
    """

    def __init__(self, period: int = 20, max_runs: int = 10) -> None:
        self._period = period
        self._max_runs = max_runs
        self._runs = 0

    def after_step(self) -> None:
        if self._runs >= self._max_runs or not torch.cuda.is_available():
            return
        iteration = self.trainer.iter
        if (iteration + 1) % self._period != 0 and iteration != self.trainer.max_iter - 1:
            return
        megabytes = [
            measure() / _MEGABYTE
            for measure in (
                torch.cuda.max_memory_reserved,
                torch.cuda.memory_reserved,
                torch.cuda.max_memory_allocated,
                torch.cuda.memory_allocated,
            )
        ]
        logging.getLogger(__name__).info(
            "iter: %d  max reserved: %.0f MB  reserved: %.0f MB  max allocated: %.0f MB  "
            "allocated: %.0f MB",
            *(iteration, *megabytes),
        )
        torch.cuda.reset_peak_memory_stats()
        self._runs += 1
