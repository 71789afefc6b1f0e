"""Learning-rate schedules: the base rate of each group times one multiplier over time."""

from typing import Any

from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    ConstantParamScheduler,
    LinearParamScheduler,
    ParamScheduler,
)
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

WARMUP_METHODS = ("linear", "constant")


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
            warmup_factor: the warm-up starts at this factor times the schedule's first value.
            warmup_length: part of the training that the warm-up takes, in [0, 1].
            warmup_method: "linear" rises to the value at which the schedule takes over; "constant"
                stays at the first value.
            rescale_interval: compress the whole schedule into the time after the warm-up, instead
                of skipping the part that the warm-up covers.
        """
        if warmup_method not in WARMUP_METHODS:
            raise ValueError(f"warm-up method {warmup_method!r}: expected one of {WARMUP_METHODS}")
        # A warm-up as long as the training leaves no time to compress the schedule into.
        is_compressed = rescale_interval and warmup_length < 1.0
        start = warmup_factor * scheduler(0.0)
        warmup: ParamScheduler = ConstantParamScheduler(start)
        if warmup_method == "linear":
            takeover = scheduler(0.0 if is_compressed else warmup_length)
            warmup = LinearParamScheduler(start, takeover)
        super().__init__(
            [warmup, scheduler],
            lengths=[warmup_length, 1 - warmup_length],
            interval_scaling=["rescaled", "rescaled" if is_compressed else "fixed"],
        )


class LRMultiplier(LRScheduler):
    """Set the learning rate of each group to its first rate times a schedule of fvcore.

    The state holds numbers, not the schedule: a resumed training may continue with another one.
    """

    def __init__(
        self, optimizer: Optimizer, multiplier: ParamScheduler, max_iter: int, last_iter: int = -1
    ) -> None:
        """
        Args:
            multiplier: part of the training that is done, in [0, 1] -> factor.
            max_iter: iterations of the whole training.
            last_iter: last finished iteration, -1 for a new training.
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
        """Learning rate of each group at the current iteration."""
        factor = self._multiplier(self.last_epoch / self._max_iter)
        return [base * factor for base in self.base_lrs]
