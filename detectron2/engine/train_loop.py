"""Training loops: a trainer runs steps, hooks act before and after them.

`TrainerBase` knows about iterations and hooks only. `SimpleTrainer` adds one model, one optimizer
and one (infinite) data loader; `AMPTrainer` does the same in mixed precision.
"""

import logging
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from detectron2.engine.metrics import BackgroundMetrics, gather_metrics, record_metrics
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, get_event_storage


def is_due(iteration: int, period: int) -> bool:
    """Whether the iteration that just ran closes a period; a period of 0 never does."""
    return period > 0 and (iteration + 1) % period == 0


class HookBase:
    """Something that a trainer calls around its steps; subclasses override what they need.

    `trainer` (a weak proxy) is set when the hook is registered, so it is there in every method.
    The order of calls is: before_train, (before_step, after_step) per iteration, after_train.
    """

    trainer: "TrainerBase"

    def before_train(self) -> None:
        """Called once, before the first iteration."""

    def after_train(self) -> None:
        """Called once, after the last iteration, and also when training raised."""

    def before_step(self) -> None:
        """Called before each iteration."""

    def after_step(self) -> None:
        """Called after each iteration."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of this hook; empty where it has no state."""
        return {}


class TrainerBase:
    """Run hooks around `run_step` for iterations [start_iter, max_iter).

    Attributes:
        iter: the iteration that runs, from 0; equal to `max_iter` once training has succeeded.
        storage: the `EventStorage` that is open while training runs.
    """

    storage: EventStorage
    max_iter: int

    def __init__(self) -> None:
        self._hooks: list[HookBase] = []
        self.iter: int = 0
        self.start_iter: int = 0

    def register_hooks(self, hooks: Iterable[HookBase | None]) -> None:
        """Append hooks (None entries are skipped); they run in the order of registration."""
        for hook in filter(None, hooks):
            if not isinstance(hook, HookBase):
                raise TypeError(f"expected a HookBase, got {type(hook).__name__}: {hook!r}")
            # A strong reference would make a cycle, and GPU memory would be freed late.
            hook.trainer = weakref.proxy(self)
            self._hooks.append(hook)

    def train(self, start_iter: int, max_iter: int) -> None:
        """Run iterations `start_iter` to `max_iter - 1`; an error is logged and raised again."""
        logger = logging.getLogger(__name__)
        logger.info("Training iterations %d to %d", start_iter, max_iter - 1)
        self.iter, self.start_iter, self.max_iter = start_iter, start_iter, max_iter
        with EventStorage(start_iter) as self.storage:
            try:
                self._run_iterations()
            except Exception:
                logger.exception("Training stopped in iteration %d", self.iter)
                raise
            finally:
                self.after_train()

    def _run_iterations(self) -> None:
        self.before_train()
        try:
            for iteration in range(self.start_iter, self.max_iter):
                self.iter = iteration
                self.before_step()
                self.run_step()
                self.after_step()
        finally:
            self.join_background()
        # Hooks tell success by iter == max_iter, so it is set only when nothing failed.
        self.iter = max(self.start_iter, self.max_iter)

    def join_background(self) -> None:
        """Wait for work in other threads and raise its error; a plain trainer has none."""

    def before_train(self) -> None:
        for hook in self._hooks:
            hook.before_train()

    def after_train(self) -> None:
        self.storage.iter = self.iter
        for hook in self._hooks:
            hook.after_train()

    def before_step(self) -> None:
        self.storage.iter = self.iter
        for hook in self._hooks:
            hook.before_step()

    def after_step(self) -> None:
        for hook in self._hooks:
            hook.after_step()

    def run_step(self) -> None:
        """One iteration; every trainer defines its own."""
        raise TypeError(f"{type(self).__name__} must define run_step()")

    def state_dict(self) -> dict[str, Any]:
        """`iteration` (the last finished one) and the states of the hooks that have one."""
        state: dict[str, Any] = {"iteration": self.iter}
        hook_states = {
            name: hook_state
            for name, hook in self._named_hooks()
            if (hook_state := hook.state_dict())
        }
        if hook_states:
            state["hooks"] = hook_states
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave; hook states without a hook are named in a warning."""
        self.iter = state_dict["iteration"]
        hooks = dict(self._named_hooks())
        for name, hook_state in state_dict.get("hooks", {}).items():
            if name in hooks:
                hooks[name].load_state_dict(hook_state)
            else:
                logging.getLogger(__name__).warning(
                    "The checkpoint has a state for hook %r. This run has no such hook; the state "
                    "is not used",
                    name,
                )

    def _named_hooks(self) -> Iterator[tuple[str, HookBase]]:
        """Hooks under the names of their classes; a second one of a class gets the suffix `#1`."""
        counts: dict[str, int] = {}
        for hook in self._hooks:
            name = type(hook).__qualname__
            number = counts.get(name, 0)
            counts[name] = number + 1
            yield (f"{name}#{number}" if number else name), hook


class SimpleTrainer(TrainerBase):
    """One model, one optimizer, one data source: fetch, forward, backward, step.

    The model takes a batch and returns a dict of scalar losses (or one scalar), which are summed.
    With several processes, wrap the model in DistributedDataParallel first.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable,
        optimizer: torch.optim.Optimizer,
        gather_metric_period: int = 1,
        zero_grad_before_forward: bool = False,
        async_write_metrics: bool = False,
    ) -> None:
        """
        Args:
            gather_metric_period: collect losses from all ranks and record them every so many
                iterations. Each time costs one synchronization.
            zero_grad_before_forward: clear gradients before the forward pass instead of after it.
            async_write_metrics: collect metrics in a background thread. They are recorded under
                the iteration they belong to, but up to a few iterations later.
        """
        super().__init__()
        # A model that was just evaluated is still in eval mode.
        model.train()
        self.model = model
        self.data_loader = data_loader
        self.optimizer = optimizer
        self.gather_metric_period = gather_metric_period
        self.zero_grad_before_forward = zero_grad_before_forward
        self._metrics = BackgroundMetrics() if async_write_metrics else None
        self._data_loader_iter_obj: Iterator | None = None

    @property
    def _data_loader_iter(self) -> Iterator:
        self.start_data_loader()
        return self._data_loader_iter_obj

    def start_data_loader(self) -> None:
        """Start iterating over the data; the first step does it otherwise.

        The constructor does not, so that a resumed run can set the loader's position first.
        """
        if self._data_loader_iter_obj is None:
            self._data_loader_iter_obj = iter(self.data_loader)

    def reset_data_loader(self, data_loader_builder: Callable[[], Iterable]) -> None:
        """Drop the data loader, then build another one (never two in memory at a time)."""
        self._data_loader_iter_obj = None
        del self.data_loader
        self.data_loader = data_loader_builder()

    def run_step(self) -> None:
        if not self.model.training:
            raise RuntimeError(
                f"{type(self).__name__} cannot train a model in eval mode: a hook or an evaluation "
                "must call model.train() when it is done"
            )
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        if self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        with self._precision():
            losses = self.model(data)
            if isinstance(losses, Tensor):
                losses = {"total_loss": losses}
            total = sum(losses.values())
        if not self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        self._backward(total)
        if is_due(self.iter, self.gather_metric_period):
            self._write_metrics(losses, data_time)
        self._update()

    def _precision(self) -> AbstractContextManager:
        """Context of the forward pass."""
        return nullcontext()

    def _backward(self, loss: Tensor) -> None:
        loss.backward()

    def _update(self) -> None:
        self.optimizer.step()

    def _write_metrics(
        self, loss_dict: Mapping[str, Tensor], data_time: float, prefix: str = ""
    ) -> None:
        if self._metrics is None:
            SimpleTrainer.write_metrics(loss_dict, data_time, prefix)
        else:
            self._metrics.write(loss_dict, data_time, self.iter, prefix)

    @staticmethod
    def write_metrics(loss_dict: Mapping[str, Tensor], data_time: float, prefix: str = "") -> None:
        """Record losses (mean over ranks), their sum and the largest data time of any rank.

        Raises FloatingPointError on the main process if the sum is not finite.
        """
        gathered = gather_metrics(loss_dict, data_time)
        if comm.is_main_process():
            record_metrics(gathered, get_event_storage().iter, prefix)

    def join_background(self) -> None:
        if self._metrics is not None:
            self._metrics.join()

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.optimizer.load_state_dict(state_dict["optimizer"])


class AMPTrainer(SimpleTrainer):
    """`SimpleTrainer` in mixed precision: float16 autocast and a gradient scaler, on CUDA."""

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable,
        optimizer: torch.optim.Optimizer,
        gather_metric_period: int = 1,
        zero_grad_before_forward: bool = False,
        grad_scaler: torch.amp.GradScaler | None = None,
        async_write_metrics: bool = False,
    ) -> None:
        device = next(model.parameters()).device
        if device.type != "cuda":
            raise ValueError(
                f"mixed precision needs a model on a CUDA device, not on {device}: move it, or set "
                "SOLVER.AMP.ENABLED False"
            )
        super().__init__(
            model,
            data_loader,
            optimizer,
            gather_metric_period,
            zero_grad_before_forward,
            async_write_metrics,
        )
        self.grad_scaler = torch.amp.GradScaler("cuda") if grad_scaler is None else grad_scaler

    def _precision(self) -> AbstractContextManager:
        return torch.autocast("cuda")

    def _backward(self, loss: Tensor) -> None:
        self.grad_scaler.scale(loss).backward()

    def _update(self) -> None:
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
