"""Hooks that save checkpoints: every so often, and whenever a metric improved."""

import logging
import math
import operator
from collections.abc import Mapping
from typing import Any

from fvcore.common.checkpoint import Checkpointer
from fvcore.common.checkpoint import PeriodicCheckpointer as _PeriodicCheckpointer

from detectron2.engine.train_loop import HookBase, is_due


class PeriodicCheckpointer(_PeriodicCheckpointer, HookBase):
    """fvcore's checkpointer as a hook: saves every `period` iterations and after the last one.

    Register it after the hooks that change what is saved (learning rate, batch-norm statistics).
    """

    def before_train(self) -> None:
        self.max_iter = self.trainer.max_iter

    def after_step(self) -> None:
        self.step(self.trainer.iter)


class BestCheckpointer(HookBase):
    """Save `{file_prefix}.pth` whenever an evaluation improves `val_metric`.

    Register it after the `EvalHook`, with the same period. A metric that is NaN or infinite is
    never the best. Checkpoints keep the best value so far, so a resumed run continues from it.
    """

    def __init__(
        self,
        eval_period: int,
        checkpointer: Checkpointer,
        val_metric: str,
        mode: str = "max",
        file_prefix: str = "model_best",
    ) -> None:
        comparisons = {"max": operator.gt, "min": operator.lt}
        if mode not in comparisons:
            raise ValueError(f"BestCheckpointer mode={mode!r}; expected 'max' or 'min'")
        self._period = eval_period
        self._val_metric = val_metric
        self._is_better = comparisons[mode]
        self._checkpointer = checkpointer
        self._file_prefix = file_prefix
        self.best_metric: float | None = None
        self.best_iter: int | None = None

    def _check(self) -> None:
        logger = logging.getLogger(__name__)
        name = self._val_metric
        value, iteration = self.trainer.storage.latest().get(name, (None, None))
        if value is None:
            logger.warning(
                "No best checkpoint: metric %r was not recorded. Register the EvalHook that "
                "returns it before BestCheckpointer",
                name,
            )
        elif not math.isfinite(value):
            logger.warning("%s is %s at iteration %d: not saved", name, value, iteration)
        elif self.best_metric is not None and not self._is_better(value, self.best_metric):
            logger.info(
                "%s %.5f at iteration %d is not better than %.5f at iteration %d: not saved",
                *(name, value, iteration, self.best_metric, self.best_iter),
            )
        else:
            logger.info("Best %s so far: %.5f at iteration %d", name, value, iteration)
            self.best_metric, self.best_iter = value, iteration
            self._checkpointer.save(self._file_prefix, iteration=iteration)

    def after_step(self) -> None:
        # If the last iteration closes a period, the evaluation runs in after_train.
        is_last = self.trainer.iter + 1 == self.trainer.max_iter
        if is_due(self.trainer.iter, self._period) and not is_last:
            self._check()

    def after_train(self) -> None:
        if self.trainer.iter >= self.trainer.max_iter:
            self._check()

    def state_dict(self) -> dict[str, Any]:
        if self.best_metric is None:
            return {}
        return {"best_metric": self.best_metric, "best_iter": self.best_iter}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.best_metric, self.best_iter = state_dict["best_metric"], state_dict["best_iter"]
