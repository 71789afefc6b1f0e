"""Hooks for `TrainerBase`: timing, logging, learning rate, evaluation, batch-norm statistics.

Hooks that save checkpoints are in `checkpoint_hooks.py` and exported here, too.
"""

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from functools import partial
from typing import Any

import torch
from fvcore.common.param_scheduler import ParamScheduler
from fvcore.nn.precise_bn import get_bn_modules, update_bn_stats
from torch import nn

from detectron2.data.stream import derived_seed
from detectron2.engine.checkpoint_hooks import BestCheckpointer, PeriodicCheckpointer
from detectron2.engine.train_loop import HookBase, is_due
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.solver import LRMultiplier
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage, EventWriter

__all__ = [
    "BestCheckpointer",
    "CallbackHook",
    "EvalHook",
    "IterationSeed",
    "IterationTimer",
    "LRScheduler",
    "PeriodicCheckpointer",
    "PeriodicWriter",
    "PreciseBN",
]

_LOG_PRECISE_BN_EVERY = 100  # batches


class CallbackHook(HookBase):
    """A hook made of functions; each takes the trainer."""

    def __init__(
        self,
        *,
        before_train: Callable | None = None,
        after_train: Callable | None = None,
        before_step: Callable | None = None,
        after_step: Callable | None = None,
    ) -> None:
        functions = {
            "before_train": before_train,
            "after_train": after_train,
            "before_step": before_step,
            "after_step": after_step,
        }
        for moment, function in functions.items():
            if function is not None:
                setattr(self, moment, partial(self._call, function))

    def _call(self, function: Callable) -> None:
        function(self.trainer)


class IterationSeed(HookBase):
    """Seed the random generators before each iteration from (seed, rank, iteration).

    A resumed run then draws the same numbers as an uninterrupted one, on every rank, without
    generator states in the checkpoint.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def before_step(self) -> None:
        seed_all_rng(derived_seed(self._seed, comm.get_rank(), self.trainer.iter))


class IterationTimer(HookBase):
    """Record the seconds of each iteration, without those of hooks, as `time`.

    The first `warmup_iter` iterations are not timed. Register it first, so that the other hooks
    run outside of the measured span.
    """

    def __init__(self, warmup_iter: int = 3) -> None:
        self._warmup_iter = warmup_iter
        self._seconds: list[float] = []  # of the timed iterations
        self._first = self._begin = 0.0  # when timing began, and the present iteration

    def before_train(self) -> None:
        self._seconds.clear()

    def before_step(self) -> None:
        self._begin = time.perf_counter()
        if self.trainer.iter - self.trainer.start_iter == self._warmup_iter:
            self._first = self._begin

    def after_step(self) -> None:
        if self.trainer.iter - self.trainer.start_iter >= self._warmup_iter:
            self._seconds.append(time.perf_counter() - self._begin)
            self.trainer.storage.put_scalar("time", self._seconds[-1])

    def after_train(self) -> None:
        if not self._seconds:
            return
        whole, busy = time.perf_counter() - self._first, sum(self._seconds)
        logging.getLogger(__name__).info(
            "Timed %d iterations after the warm-up: %s, %.4f s each. Hooks took %s more.",
            *(len(self._seconds), timedelta(seconds=round(busy)), busy / len(self._seconds)),
            timedelta(seconds=round(max(whole - busy, 0.0))),
        )


class PeriodicWriter(HookBase):
    """Call `write()` of each writer every `period` iterations and at the end, then close them.

    With `max_seconds`, also write when the last writing was longer ago than that, so that the log
    of a slow run keeps moving.
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
        # Write what was recorded since the last iteration, such as an evaluation.
        self._write()
        for writer in self._writers:
            writer.close()


class LRScheduler(HookBase):
    """Step a learning-rate scheduler after each iteration and record `lr`.

    Takes a torch scheduler or an fvcore `ParamScheduler` (a multiplier of the initial rates). An
    optimizer or a scheduler that is not given is the trainer's own.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer | None = None,
        scheduler: torch.optim.lr_scheduler.LRScheduler | ParamScheduler | None = None,
    ) -> None:
        self._optimizer = optimizer
        self._scheduler = scheduler

    @property
    def scheduler(self) -> torch.optim.lr_scheduler.LRScheduler | ParamScheduler:
        return self._scheduler or self.trainer.scheduler

    def before_train(self) -> None:
        self._optimizer = self._optimizer or self.trainer.optimizer
        multiplier = self.scheduler
        if isinstance(multiplier, ParamScheduler):
            done, total = self.trainer.iter - 1, self.trainer.max_iter
            self._scheduler = LRMultiplier(self._optimizer, multiplier, total, last_iter=done)
        self._best_param_group_id = self.get_best_param_group_id(self._optimizer)

    @staticmethod
    def get_best_param_group_id(optimizer: torch.optim.Optimizer) -> int:
        """Index of the group whose rate is recorded: the largest one.

        If each group has one parameter, it is the first group with the most common rate.
        """
        sizes = [len(group["params"]) for group in optimizer.param_groups]
        rates = Counter(group["lr"] for group in optimizer.param_groups)
        common = [rates[group["lr"]] for group in optimizer.param_groups]
        weights = sizes if max(sizes) > 1 else common
        return weights.index(max(weights))

    def after_step(self) -> None:
        shown = self._optimizer.param_groups[self._best_param_group_id]
        self.trainer.storage.put_scalar("lr", shown["lr"], smoothing_hint=False)
        self.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        # A ParamScheduler is a function of time: it has no state.
        has_state = isinstance(self.scheduler, torch.optim.lr_scheduler.LRScheduler)
        return self.scheduler.state_dict() if has_state else {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        if isinstance(self.scheduler, torch.optim.lr_scheduler.LRScheduler):
            self.scheduler.load_state_dict(state_dict)


class EvalHook(HookBase):
    """Evaluate every `eval_period` iterations and after the last one; 0: only after the last one.

    Every process calls `eval_function`. It returns nothing, or a (nested) dict of numbers, which is
    recorded under flattened names such as "segm/AP".
    """

    def __init__(self, eval_period: int, eval_function: Callable[[], Any]) -> None:
        self._period = eval_period
        self._func = eval_function

    def _evaluate(self) -> None:
        results = self._func()
        if results:
            self.trainer.storage.put_scalars(**_flat_numbers(results), smoothing_hint=False)
        # Ranks may evaluate at different speeds. The next step must not count the waiting.
        comm.synchronize()

    def after_step(self) -> None:
        # The last iteration is evaluated in after_train.
        is_last = self.trainer.iter + 1 == self.trainer.max_iter
        if is_due(self.trainer.iter, self._period) and not is_last:
            self._evaluate()

    def after_train(self) -> None:
        # Not after a training that failed.
        if self.trainer.iter >= self.trainer.max_iter:
            self._evaluate()
        del self._func  # it may hold the trainer


def _flat_numbers(results: Any) -> dict[str, float]:
    if not isinstance(results, Mapping):
        raise TypeError(f"EvalHook: eval_function returned {results!r}; expected a dict or None")
    flat = flatten_results_dict(results)
    for name, value in flat.items():
        try:
            flat[name] = float(value)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"EvalHook: eval_function returned {name}: {value!r}, which is not a number"
            ) from error
    return flat


class PreciseBN(HookBase):
    """Replace the running averages of batch norms by exact averages over `num_iter` batches.

    Runs every `period` iterations (0: never) and after the last one, if the model has batch norms
    in training mode. Register it before the hooks that save or evaluate.
    """

    def __init__(self, period: int, model: nn.Module, data_loader: Iterable, num_iter: int) -> None:
        self._period = period
        self._model = model
        self._data_loader = data_loader
        self._num_iter = num_iter
        self._enabled = bool(get_bn_modules(model))
        if not self._enabled:
            logging.getLogger(__name__).info(
                "PreciseBN is off: the model has no batch norm in training mode"
            )

    def after_step(self) -> None:
        is_last = self.trainer.iter + 1 == self.trainer.max_iter
        if is_due(self.trainer.iter, self._period) or is_last:
            self.update_stats()

    def update_stats(self) -> None:
        """Compute the averages now; also usable outside training."""
        if not self._enabled:
            return
        # What the model records meanwhile is not part of the training: it gets another storage.
        with EventStorage():
            update_bn_stats(self._model, self._batches(), self._num_iter)

    def _batches(self) -> Iterable[Any]:
        # From the start each time, so that a resumed run sees the same batches.
        for number, batch in enumerate(self._data_loader):
            if number % _LOG_PRECISE_BN_EVERY == 0:
                logging.getLogger(__name__).info(
                    "Batch norm statistics: %d of %d batches", number, self._num_iter
                )
            yield batch
