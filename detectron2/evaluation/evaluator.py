"""Run a model over a data loader and let evaluators look at what comes out."""

import logging
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import nn

from detectron2.utils.comm import get_world_size, is_main_process

__all__ = ["DatasetEvaluator", "DatasetEvaluators", "inference_context", "inference_on_dataset"]

_WARMUP_BATCHES = 5
_LOG_SECONDS = 5


class DatasetEvaluator:
    """Collects inputs and outputs batch by batch, then computes figures from all of them.

    `mode` says what made the outputs where they are not a detector's own (a prompt, forced scores).
    """

    mode: str | None = None

    def reset(self) -> None:
        """Forget everything; called before a new round."""

    def process(self, inputs: Any, outputs: Any) -> None:
        """Take one batch: the model's inputs and its outputs, in the same order."""

    def evaluate(self) -> dict[str, Any] | None:
        """Figures as `{task: {metric: number}}`, on the main process; None or empty elsewhere."""


class DatasetEvaluators(DatasetEvaluator):
    """Several evaluators as one; their results are joined, and no two may share a task name."""

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
        results: dict[str, Any] = OrderedDict()
        for evaluator in self._evaluators:
            result = evaluator.evaluate()
            if not is_main_process() or result is None:
                continue
            for task, metrics in result.items():
                if task in results:
                    raise ValueError(
                        f"two evaluators gave results named {task!r}; the second is "
                        f"{type(evaluator).__name__}"
                    )
                results[task] = metrics
        return results


class _Progress:
    """Seconds spent on data, inference and evaluation, logged every few seconds with an ETA."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.num_warmup = min(_WARMUP_BATCHES, total - 1)
        self.seconds = {"Dataloading": 0.0, "Inference": 0.0, "Eval": 0.0}
        self.start = self.last_log = time.perf_counter()

    def begin_timing(self) -> None:
        """Count from here: the first batches are slower than the rest."""
        self.start = time.perf_counter()
        self.seconds = dict.fromkeys(self.seconds, 0.0)

    def log(self, done: int) -> None:
        """One line every few seconds, and one after the last batch."""
        now = time.perf_counter()
        if now - self.last_log < _LOG_SECONDS and done < self.total:
            return
        self.last_log = now
        counted = done - self.num_warmup if done > self.num_warmup else done
        total_per_batch = (now - self.start) / counted
        parts = "  ".join(f"{k}: {v / counted:.4f} s/iter" for k, v in self.seconds.items())
        eta = timedelta(seconds=int(total_per_batch * (self.total - done)))
        logging.getLogger(__name__).info(
            "Inference done %d/%d  %s  Total: %.4f s/iter  ETA=%s",
            *(done, self.total, parts, total_per_batch, eta),
        )

    def log_total(self, num_devices: int) -> None:
        counted = max(self.total - self.num_warmup, 1)
        logger = logging.getLogger(__name__)
        for what, spent in (
            ("run time", time.perf_counter() - self.start),
            ("pure compute time", self.seconds["Inference"]),
        ):
            logger.info(
                "Total inference %s: %s (%.6f s / iter per device, on %d devices)",
                *(what, timedelta(seconds=int(spent)), spent / counted, num_devices),
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
        evaluator: one, several, or None to run the model only (then the result is empty).
    """
    logger = logging.getLogger(__name__)
    num_devices = get_world_size()
    total = len(data_loader)
    logger.info("Start inference on %d batches", total)
    if evaluator is None:
        evaluator = DatasetEvaluators([])
    if isinstance(evaluator, list | tuple):
        evaluator = DatasetEvaluators(evaluator)
    evaluator.reset()

    progress = _Progress(total)
    with ExitStack() as stack:
        if isinstance(model, nn.Module):
            stack.enter_context(inference_context(model))
        stack.enter_context(torch.no_grad())
        start_data = time.perf_counter()
        for index, inputs in enumerate(data_loader):
            if index == progress.num_warmup:
                progress.begin_timing()
                start_data = time.perf_counter()
            start_inference = time.perf_counter()
            progress.seconds["Dataloading"] += start_inference - start_data
            outputs = model(inputs)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            start_eval = time.perf_counter()
            progress.seconds["Inference"] += start_eval - start_inference
            evaluator.process(inputs, outputs)
            start_data = time.perf_counter()
            progress.seconds["Eval"] += start_data - start_eval
            progress.log(index + 1)
    progress.log_total(num_devices)
    # Only the main process gets figures; the others an empty dict, so that callers treat all alike.
    results = evaluator.evaluate()
    return {} if results is None else results


@contextmanager
def inference_context(model: nn.Module) -> Iterator[None]:
    """Put `model` into eval mode, and back into the mode it had afterwards."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
