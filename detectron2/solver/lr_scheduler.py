"""Learning-rate schedules: a base rate of each parameter times one multiplier over time."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    ConstantParamScheduler,
    LinearParamScheduler,
    ParamScheduler,
)
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

__all__ = ["LRMultiplier", "WarmupCosineLR", "WarmupMultiStepLR", "WarmupParamScheduler"]

WARMUP_METHODS = ("linear", "constant")


def _check_warmup_method(method: str) -> None:
    if method not in WARMUP_METHODS:
        raise ValueError(f"warm-up method {method!r}: expected one of {WARMUP_METHODS}")


class WarmupParamScheduler(CompositeParamScheduler):
    """A schedule that starts with a warm-up."""

    def __init__(
        self,
        scheduler: ParamScheduler,
        warmup_factor: float,
        warmup_length: float,
        warmup_method: str = "linear",
        rescale_interval: bool = False,
    ) -> None:
        """
        Args:
            scheduler: the schedule after the warm-up.
            warmup_factor: the warm-up starts from this times the schedule's first value.
            warmup_length: part of the training, in [0, 1], that the warm-up takes.
            warmup_method: "linear" rises to the value that the schedule goes on from; "constant"
                stays at the first.
            rescale_interval: squeeze the whole schedule into the time after the warm-up, instead of
                cutting off what the warm-up covers.
        """
        _check_warmup_method(warmup_method)
        # A warm-up that fills the training leaves no time to squeeze the schedule into.
        rescale_interval = rescale_interval and warmup_length < 1.0
        first = warmup_factor * scheduler(0.0)
        if warmup_method == "constant":
            warmup: ParamScheduler = ConstantParamScheduler(first)
        else:
            last = scheduler(0.0 if rescale_interval else warmup_length)
            warmup = LinearParamScheduler(first, last)
        super().__init__(
            [warmup, scheduler],
            interval_scaling=["rescaled", "rescaled" if rescale_interval else "fixed"],
            lengths=[warmup_length, 1 - warmup_length],
        )


class LRMultiplier(LRScheduler):
    """Set each group's learning rate to its first one times a schedule of fvcore.

    Its state holds numbers alone, not the schedule: a resumed training may go on with another one.
    """

    def __init__(
        self, optimizer: Optimizer, multiplier: ParamScheduler, max_iter: int, last_iter: int = -1
    ) -> None:
        """
        Args:
            multiplier: from the part of the training that is done, in [0, 1], to a factor.
            max_iter: number of iterations in the whole training.
            last_iter: iterations done before, -1 for a new training.
        """
        if not isinstance(multiplier, ParamScheduler):
            raise ValueError(
                f"multiplier is a {type(multiplier).__name__}; LRMultiplier takes a ParamScheduler "
                "of fvcore"
            )
        self._multiplier = multiplier
        self._max_iter = max_iter
        super().__init__(optimizer, last_epoch=last_iter)

    def state_dict(self) -> dict[str, Any]:
        """Base rates and the last iteration."""
        return {"base_lrs": self.base_lrs, "last_epoch": self.last_epoch}

    def get_lr(self) -> list[float]:
        """Learning rate of each group at the present iteration."""
        factor = self._multiplier(self.last_epoch / self._max_iter)
        return [base * factor for base in self.base_lrs]


def _warmup_multiplier(method: str, iteration: int, iterations: int, factor: float) -> float:
    """Factor on the rate: `factor` at iteration 0, 1 from `iterations` on."""
    if iteration >= iterations:
        return 1.0
    if method == "constant":
        return factor
    done = iteration / iterations
    return factor * (1 - done) + done


class _WarmupLR(LRScheduler):
    """Rate = base * warm-up multiplier * `decay(iteration)`."""

    def __init__(
        self,
        optimizer: Optimizer,
        warmup_factor: float,
        warmup_iters: int,
        warmup_method: str,
        last_epoch: int,
    ) -> None:
        _check_warmup_method(warmup_method)
        self.warmup_factor = warmup_factor
        self.warmup_iters = warmup_iters
        self.warmup_method = warmup_method
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """Learning rate of each group at the present iteration."""
        warmup = _warmup_multiplier(
            self.warmup_method, self.last_epoch, self.warmup_iters, self.warmup_factor
        )
        return [base * warmup * self.decay(self.last_epoch) for base in self.base_lrs]


class WarmupMultiStepLR(_WarmupLR):
    """Warm-up, then a decay by `gamma` at each milestone; `LRMultiplier` does more."""

    def __init__(
        self,
        optimizer: Optimizer,
        milestones: Sequence[int],
        gamma: float = 0.1,
        warmup_factor: float = 0.001,
        warmup_iters: int = 1000,
        warmup_method: str = "linear",
        last_epoch: int = -1,
    ) -> None:
        if list(milestones) != sorted(milestones):
            raise ValueError(f"milestones must increase; got {list(milestones)}")
        self.milestones = list(milestones)
        self.gamma = gamma
        super().__init__(optimizer, warmup_factor, warmup_iters, warmup_method, last_epoch)

    def decay(self, iteration: int) -> float:
        """`gamma` to the number of milestones passed."""
        return self.gamma ** bisect_right(self.milestones, iteration)


class WarmupCosineLR(_WarmupLR):
    """Warm-up and half a cosine from 1 to 0 over `max_iters`; `LRMultiplier` does more."""

    def __init__(
        self,
        optimizer: Optimizer,
        max_iters: int,
        warmup_factor: float = 0.001,
        warmup_iters: int = 1000,
        warmup_method: str = "linear",
        last_epoch: int = -1,
    ) -> None:
        self.max_iters = max_iters
        super().__init__(optimizer, warmup_factor, warmup_iters, warmup_method, last_epoch)

    def decay(self, iteration: int) -> float:
        """Cosine that falls from 1 at the start to 0 at `max_iters`."""
        return 0.5 * (1.0 + math.cos(math.pi * iteration / self.max_iters))
