"""Hooks for `TrainerBase`: timing, logging, learning rate, evaluation, batch-norm statistics.

Those that save checkpoints are in `checkpoint_hooks.py`, profilers in `profiling.py`; all names are
exported here.
"""

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any

import torch
from fvcore.common.param_scheduler import ParamScheduler
from fvcore.common.timer import Timer
from fvcore.nn.precise_bn import get_bn_modules, update_bn_stats
from torch import nn

import detectron2.utils.comm as comm
from detectron2.data.stream import derived_seed
from detectron2.engine.checkpoint_hooks import BestCheckpointer, PeriodicCheckpointer
from detectron2.engine.profiling import AutogradProfiler, TorchMemoryStats, TorchProfiler
from detectron2.engine.train_loop import HookBase, is_due
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.solver import LRMultiplier
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage, EventWriter

__all__ = [
    "AutogradProfiler",
    "BestCheckpointer",
    "CallbackHook",
    "EvalHook",
    "IterationSeed",
    "IterationTimer",
    "LRScheduler",
    "PeriodicCheckpointer",
    "PeriodicWriter",
    "PreciseBN",
    "TorchMemoryStats",
    "TorchProfiler",
]

_LOG_PRECISE_BN_EVERY = 100  # batches


class CallbackHook(HookBase):
    """A hook made of functions, each called with the trainer."""

    def __init__(
        self,
        *,
        before_train: Callable | None = None,
        after_train: Callable | None = None,
        before_step: Callable | None = None,
        after_step: Callable | None = None,
    ) -> None:
        self._callbacks = {
            "before_train": before_train,
            "after_train": after_train,
            "before_step": before_step,
            "after_step": after_step,
        }

    def _call(self, name: str) -> None:
        callback = self._callbacks[name]
        if callback is not None:
            callback(self.trainer)

    def before_train(self) -> None:
        self._call("before_train")

    def after_train(self) -> None:
        self._call("after_train")
        # The functions may hold the trainer: let go of them.
        self._callbacks = dict.fromkeys(self._callbacks)

    def before_step(self) -> None:
        self._call("before_step")

    def after_step(self) -> None:
        self._call("after_step")


class IterationSeed(HookBase):
    """Seed the random generators before each iteration from (seed, rank, iteration).

    A resumed run then draws the numbers that the interrupted one would have drawn, on every rank,
    without generator states in the checkpoint.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def before_step(self) -> None:
        seed_all_rng(derived_seed(self._seed, comm.get_rank(), self.trainer.iter))


class IterationTimer(HookBase):
    """Put the seconds of each iteration (hooks not counted) into the storage as `time`.

    The first `warmup_iter` iterations are left out. Register it first, to see all hooks' time.
    """

    def __init__(self, warmup_iter: int = 3) -> None:
        self._warmup_iter = warmup_iter
        self._step_timer = Timer()
        self._start_time = time.perf_counter()
        self._total_timer = Timer()

    def before_train(self) -> None:
        self._restart()

    def _restart(self) -> None:
        self._start_time = time.perf_counter()
        self._total_timer.reset()
        self._total_timer.pause()

    def after_train(self) -> None:
        logger = logging.getLogger(__name__)
        total_time = time.perf_counter() - self._start_time
        total_time_minus_hooks = self._total_timer.seconds()
        hook_time = total_time - total_time_minus_hooks
        # The iterations that warmed up are not timed, nor is one that failed.
        timed = self.trainer.storage.iter - self.trainer.start_iter - self._warmup_iter
        if timed > 0 and total_time_minus_hooks > 0:
            logger.info(
                "Overall training speed: %d iterations in %s (%.4f s / it)",
                timed,
                timedelta(seconds=int(total_time_minus_hooks)),
                total_time_minus_hooks / timed,
            )
        logger.info(
            "Total training time: %s (%s on hooks)",
            timedelta(seconds=int(total_time)),
            timedelta(seconds=int(hook_time)),
        )

    def before_step(self) -> None:
        self._step_timer.reset()
        self._total_timer.resume()

    def after_step(self) -> None:
        done = self.trainer.storage.iter - self.trainer.start_iter + 1
        if done > self._warmup_iter:
            self.trainer.storage.put_scalars(time=self._step_timer.seconds())
            self._total_timer.pause()
        else:
            self._restart()


class PeriodicWriter(HookBase):
    """Call `write()` of each writer every `period` iterations and at the end, then close them.

    With `max_seconds` also after an iteration that ends that long after the last writing, so that
    slow runs show that they are alive.
    """

    def __init__(
        self, writers: Iterable[EventWriter], period: int = 20, max_seconds: float = math.inf
    ) -> None:
        self._writers = list(writers)
        for writer in self._writers:
            if not isinstance(writer, EventWriter):
                raise TypeError(f"expected an EventWriter, got {type(writer).__name__}: {writer!r}")
        self._period = period
        self._max_seconds = max_seconds
        self._last_time = time.perf_counter()

    def before_train(self) -> None:
        self._last_time = time.perf_counter()

    def after_step(self) -> None:
        is_last = self.trainer.iter == self.trainer.max_iter - 1
        is_late = time.perf_counter() - self._last_time > self._max_seconds
        if is_due(self.trainer.iter, self._period) or is_last or is_late:
            self._write()

    def _write(self) -> None:
        for writer in self._writers:
            writer.write()
        self._last_time = time.perf_counter()

    def after_train(self) -> None:
        # What was put since the last iteration (an evaluation, say) is written too.
        self._write()
        for writer in self._writers:
            writer.close()


class LRScheduler(HookBase):
    """Step a learning-rate scheduler after each iteration and record `lr`.

    Takes a torch scheduler or an fvcore `ParamScheduler` (a multiplier of the initial rates); what
    is not given is the trainer's own `optimizer` and `scheduler`.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer | None = None,
        scheduler: torch.optim.lr_scheduler.LRScheduler | ParamScheduler | None = None,
    ) -> None:
        self._optimizer = optimizer
        self._scheduler = scheduler

    def before_train(self) -> None:
        self._optimizer = self._optimizer or self.trainer.optimizer
        if isinstance(self.scheduler, ParamScheduler):
            self._scheduler = LRMultiplier(
                self._optimizer,
                self.scheduler,
                self.trainer.max_iter,
                last_iter=self.trainer.iter - 1,
            )
        self._best_param_group_id = LRScheduler.get_best_param_group_id(self._optimizer)

    @staticmethod
    def get_best_param_group_id(optimizer: torch.optim.Optimizer) -> int:
        """Index of the group whose rate is shown: the largest, else the first of the commonest."""
        groups = optimizer.param_groups
        sizes = [len(group["params"]) for group in groups]
        if max(sizes) > 1:
            return sizes.index(max(sizes))
        # One parameter a group: take the rate that most of them have.
        rates = [group["lr"] for group in groups]
        return rates.index(max(rates, key=rates.count))

    def after_step(self) -> None:
        rate = self._optimizer.param_groups[self._best_param_group_id]["lr"]
        self.trainer.storage.put_scalar("lr", rate, smoothing_hint=False)
        self.scheduler.step()

    @property
    def scheduler(self) -> torch.optim.lr_scheduler.LRScheduler | ParamScheduler:
        return self._scheduler or self.trainer.scheduler

    def state_dict(self) -> dict[str, Any]:
        if isinstance(self.scheduler, torch.optim.lr_scheduler.LRScheduler):
            return self.scheduler.state_dict()
        return {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        if isinstance(self.scheduler, torch.optim.lr_scheduler.LRScheduler):
            self.scheduler.load_state_dict(state_dict)


class EvalHook(HookBase):
    """Run an evaluation every `eval_period` iterations and after the last one; 0: only at the end.

    All processes call `eval_function`; it returns a (nested) dict of numbers, put into the storage
    under flattened names such as "segm/AP", or nothing.
    """

    def __init__(self, eval_period: int, eval_function: Callable[[], Any]) -> None:
        self._period = eval_period
        self._func = eval_function

    def _evaluate(self) -> None:
        results = self._func()
        if results:
            if not isinstance(results, Mapping):
                raise TypeError(f"the evaluation function must return a dict, got {results!r}")
            flat = flatten_results_dict(results)
            for name, value in flat.items():
                try:
                    flat[name] = float(value)
                except (TypeError, ValueError) as error:
                    raise ValueError(
                        "[EvalHook] the evaluation function should return a nested dict of "
                        f"numbers, got {name}: {value!r}"
                    ) from error
            self.trainer.storage.put_scalars(**flat, smoothing_hint=False)
        # Evaluation may take ranks different times: the next step must not count the waiting.
        comm.synchronize()

    def after_step(self) -> None:
        # The last iteration is evaluated in after_train.
        if is_due(self.trainer.iter, self._period) and (
            self.trainer.iter + 1 != self.trainer.max_iter
        ):
            self._evaluate()

    def after_train(self) -> None:
        # Not after a training that failed.
        if self.trainer.iter >= self.trainer.max_iter:
            self._evaluate()
        del self._func  # it may hold the trainer


class PreciseBN(HookBase):
    """Replace batch-norm running averages by true averages over `num_iter` batches.

    Runs every `period` iterations (0: never) and after the last one; nothing happens where the
    model has no batch norm in training mode. Register it before the hooks that save or evaluate.
    """

    def __init__(self, period: int, model: nn.Module, data_loader: Iterable, num_iter: int) -> None:
        self._period = period
        self._model = model
        self._data_loader = data_loader
        self._num_iter = num_iter
        self._disabled = not get_bn_modules(model)
        if self._disabled:
            logging.getLogger(__name__).info(
                "PreciseBN is off: the model has no batch norm layer in training mode."
            )

    def after_step(self) -> None:
        is_last = self.trainer.iter + 1 == self.trainer.max_iter
        if is_due(self.trainer.iter, self._period) or is_last:
            self.update_stats()

    def update_stats(self) -> None:
        """Compute the statistics now; also usable outside training."""
        if self._disabled:
            return
        # Its own storage: what the model logs meanwhile is not training's.
        with EventStorage():
            update_bn_stats(self._model, self._batches(), self._num_iter)

    def _batches(self) -> Iterable[Any]:
        # From the start each time, so that a resumed run sees the batches of an uninterrupted one.
        for number, batch in enumerate(self._data_loader):
            if number % _LOG_PRECISE_BN_EVERY == 0:
                logging.getLogger(__name__).info(
                    "Computing precise batch-norm statistics: %d/%d batches", number, self._num_iter
                )
            yield batch
