"""Training loops: a trainer runs steps, hooks act before and after them.

`TrainerBase` knows about iterations and hooks only. `SimpleTrainer` adds one model, one optimizer
and one (infinite) data loader; `AMPTrainer` does the same in mixed precision.
"""

import logging
import math
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

import detectron2.utils.comm as comm
from detectron2.utils.events import EventStorage, get_event_storage

__all__ = ["HookBase", "TrainerBase", "SimpleTrainer", "AMPTrainer"]


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
        for hook in hooks:
            if hook is None:
                continue
            if not isinstance(hook, HookBase):
                raise TypeError(f"expected a HookBase, got {type(hook).__name__}: {hook!r}")
            # A strong reference would make a cycle, and GPU memory would be freed late.
            hook.trainer = weakref.proxy(self)
            self._hooks.append(hook)

    def train(self, start_iter: int, max_iter: int) -> None:
        """Run iterations `start_iter` to `max_iter - 1`; an error is logged, then raised."""
        logger = logging.getLogger(__name__)
        logger.info("Starting training from iteration %d", start_iter)
        self.iter = self.start_iter = start_iter
        self.max_iter = max_iter
        with EventStorage(start_iter) as self.storage:
            try:
                self.before_train()
                for iteration in range(start_iter, max_iter):
                    self.iter = iteration
                    self.before_step()
                    self.run_step()
                    self.after_step()
                # Only a run that got through has iter == max_iter: hooks tell success by it.
                self.iter = max(start_iter, max_iter)
            except Exception:
                logger.exception("Exception during training, in iteration %d:", self.iter)
                raise
            finally:
                self.after_train()

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
                    "The checkpoint holds a state of hook %r, which this run has not: ignored.",
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

    The model takes a batch and gives a dict of scalar losses (or one scalar), which are summed.
    With several processes the model is expected to be wrapped in DistributedDataParallel already.
    """

    def __init__(
        self, model: nn.Module, data_loader: Iterable, optimizer: torch.optim.Optimizer
    ) -> None:
        super().__init__()
        # A model that was evaluated before is still in eval mode.
        model.train()
        self.model = model
        self.data_loader = data_loader
        self.optimizer = optimizer
        self._data_loader_iter_obj: Iterator | None = None

    @property
    def _data_loader_iter(self) -> Iterator:
        self.start_data_loader()
        return self._data_loader_iter_obj

    def start_data_loader(self) -> None:
        """Begin to iterate over the data, if that has not begun; the first step else does it.

        Not done in the constructor, so that a resumed run can set the loader's position first.
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
            raise RuntimeError(f"{type(self).__name__}: the model was changed to eval mode")
        data, data_time = self._fetch()
        loss_dict = _as_loss_dict(self.model(data))
        self.optimizer.zero_grad()
        sum(loss_dict.values()).backward()
        self._write_metrics(loss_dict, data_time)
        self.optimizer.step()

    def _fetch(self) -> tuple[Any, float]:
        """The next batch and the seconds that it took."""
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        return data, time.perf_counter() - start

    def _write_metrics(
        self, loss_dict: Mapping[str, Tensor], data_time: float, prefix: str = ""
    ) -> None:
        SimpleTrainer.write_metrics(loss_dict, data_time, prefix)

    @staticmethod
    def write_metrics(loss_dict: Mapping[str, Tensor], data_time: float, prefix: str = "") -> None:
        """Put losses (mean over ranks), their sum and the largest data time into the storage.

        Raises FloatingPointError, on the main process, where the sum of losses is not finite.
        """
        names = list(loss_dict)
        # One copy from the device, not one per loss.
        values = (
            torch.stack([loss_dict[name].detach().float().reshape(()) for name in names])
            .cpu()
            .tolist()
        )
        gathered = comm.gather((data_time, dict(zip(names, values, strict=True))))
        if not comm.is_main_process():
            return
        storage = get_event_storage()
        storage.put_scalar("data_time", max(seconds for seconds, _ in gathered))
        metrics = {
            name: sum(rank_losses[name] for _, rank_losses in gathered) / len(gathered)
            for name in names
        }
        total = sum(metrics.values())
        if not math.isfinite(total):
            raise FloatingPointError(
                f"the loss became infinite or NaN at iteration={storage.iter}; losses: {metrics}"
            )
        storage.put_scalar(f"{prefix}total_loss", total)
        if len(metrics) > 1:
            storage.put_scalars(**metrics)

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
        grad_scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        if next(model.parameters()).device.type != "cuda":
            raise ValueError(
                "mixed precision training needs a CUDA device, but the model is on "
                f"{next(model.parameters()).device}: set SOLVER.AMP.ENABLED False"
            )
        super().__init__(model, data_loader, optimizer)
        self.grad_scaler = torch.amp.GradScaler("cuda") if grad_scaler is None else grad_scaler

    def run_step(self) -> None:
        if not self.model.training:
            raise RuntimeError(f"{type(self).__name__}: the model was changed to eval mode")
        data, data_time = self._fetch()
        with torch.autocast("cuda"):
            loss_dict = _as_loss_dict(self.model(data))
            losses = sum(loss_dict.values())
        self.optimizer.zero_grad()
        self.grad_scaler.scale(losses).backward()
        self._write_metrics(loss_dict, data_time)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.grad_scaler.load_state_dict(state_dict["grad_scaler"])


def _as_loss_dict(losses: Tensor | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return {"total_loss": losses} if isinstance(losses, Tensor) else losses
