"""Run a model over a data loader and hand its outputs to evaluators."""

import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import nn

from detectron2.utils.comm import get_world_size, is_main_process

__all__ = ["DatasetEvaluator", "DatasetEvaluators", "inference_context", "inference_on_dataset"]

_WARMUP_BATCHES = 5  # are slower than the rest
_LOG_SECONDS = 5

logger = logging.getLogger(__name__)


class DatasetEvaluator:
    """Collects inputs and outputs batch by batch, then computes figures from all of them.

    `mode` says what made the outputs if they are not a detector's own (a prompt, forced scores).
    """

    mode: str | None = None

    def reset(self) -> None:
        """Forget everything; called before a new round."""

    def process(self, inputs: Any, outputs: Any) -> None:
        """Take one batch: the model's inputs and its outputs, in the same order."""

    def evaluate(self) -> dict[str, Any] | None:
        """Figures as `{task: {metric: number}}` on the main process; None or empty elsewhere."""


class DatasetEvaluators(DatasetEvaluator):
    """Several evaluators as one; no two may give results for the same task."""

    def __init__(self, evaluators: Sequence[DatasetEvaluator]) -> None:
        super().__init__()
        self._evaluators = evaluators

    def reset(self) -> None:
        for evaluator in self._evaluators:
            evaluator.reset()

    def process(self, inputs: Any, outputs: Any) -> None:
        for evaluator in self._evaluators:
            evaluator.process(inputs, outputs)

    def evaluate(self) -> dict[str, Any]:
        parts = [evaluator.evaluate() for evaluator in self._evaluators]
        joined: dict[str, Any] = OrderedDict()
        for part in parts if is_main_process() else ():
            repeated = joined.keys() & (part or {}).keys()
            if repeated:
                raise ValueError(f"two evaluators gave results for {sorted(repeated)}")
            joined.update(part or {})
        return joined


class _Progress:
    """Logs the time of each part, and the time left, every few seconds."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._last_log = time.perf_counter()
        self._start_clock(at_batch=0)

    def _start_clock(self, at_batch: int) -> None:
        self._first_batch = at_batch
        self._start = self._last_lap = time.perf_counter()
        self._seconds: Counter[str] = Counter()

    def lap(self, part: str) -> None:
        """Book the time since the previous lap to `part`."""
        now = time.perf_counter()
        self._seconds[part] += now - self._last_lap
        self._last_lap = now

    def finish_batch(self, done: int) -> None:
        """Log if it is time; `done` batches are finished."""
        if self._last_lap - self._last_log >= _LOG_SECONDS or done == self._total:
            self._last_log = self._last_lap
            per_batch = (self._last_lap - self._start) / (done - self._first_batch)
            left = timedelta(seconds=int(per_batch * (self._total - done)))
            logger.info(
                "%d of %d batches (%s), ETA=%s", done, self._total, self._describe(done), left
            )
        if done == min(_WARMUP_BATCHES, self._total - 1):
            self._start_clock(at_batch=done)

    def _describe(self, done: int) -> str:
        counted = done - self._first_batch
        parts = [f"{part} {seconds / counted:.4f}" for part, seconds in self._seconds.items()]
        return f"s per batch: {', '.join(parts)}"

    def log_total(self) -> None:
        """Log the whole run without its warm-up batches."""
        if self._seconds:
            seconds = timedelta(seconds=int(self._last_lap - self._start))
            logger.info(
                "The last %d batches took %s on each of %d devices (%s)",
                *(self._total - self._first_batch, seconds, get_world_size()),
                self._describe(self._total),
            )


def inference_on_dataset(
    model: Any,
    data_loader: Iterable,
    evaluator: DatasetEvaluator | list[DatasetEvaluator] | None,
) -> dict[str, Any]:
    """Run `model` in eval mode on every batch and return the evaluator's results.

    Args:
        model: called with one batch, returns its outputs; put back into its mode afterwards.
        data_loader: finite, with a length.
        evaluator: one, several, or None to run the model only (the result is then empty).
    """
    total = len(data_loader)
    logger.info("Evaluating a model on %d batches", total)
    if evaluator is None or isinstance(evaluator, list | tuple):
        evaluator = DatasetEvaluators(evaluator or [])
    evaluator.reset()

    with ExitStack() as stack:
        if isinstance(model, nn.Module):
            stack.enter_context(inference_context(model))
        stack.enter_context(torch.no_grad())
        progress = _Progress(total)
        for done, inputs in enumerate(data_loader, start=1):
            progress.lap("data")
            outputs = model(inputs)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            progress.lap("inference")
            evaluator.process(inputs, outputs)
            progress.lap("evaluation")
            progress.finish_batch(done)
    progress.log_total()
    return evaluator.evaluate() or {}  # only the main process has figures


@contextmanager
def inference_context(model: nn.Module) -> Iterator[None]:
    """Put `model` into eval mode, and back into its previous mode afterwards."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
