"""Values of a config that no run can use: refused where the config is read, with their key."""

import math
from collections.abc import Callable
from typing import Any

import torch

from detectron2.config import CfgNode

Rule = tuple[Callable[[Any], bool], str]


def _is_device(value: str) -> bool:
    try:
        torch.device(value)
    except RuntimeError:
        return False
    return True


def _sizes(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


AT_LEAST_0: Rule = (
    lambda value: math.isfinite(value) and value >= 0,
    "a finite number of 0 or more",
)
AT_LEAST_1: Rule = (lambda value: value >= 1, "a number of 1 or more")
SIZES: Rule = (lambda value: all(size >= 1 for size in _sizes(value)), "sizes of 1 or more")
RULES: dict[str, Rule] = {
    "SOLVER.MAX_ITER": AT_LEAST_1,
    "SOLVER.IMS_PER_BATCH": AT_LEAST_1,
    "SOLVER.CHECKPOINT_PERIOD": AT_LEAST_1,
    "SOLVER.BASE_LR": AT_LEAST_0,
    "SOLVER.WEIGHT_DECAY": AT_LEAST_0,
    "SOLVER.MOMENTUM": AT_LEAST_0,
    "SOLVER.WARMUP_ITERS": AT_LEAST_0,
    "TEST.EVAL_PERIOD": AT_LEAST_0,
    "DATALOADER.NUM_WORKERS": AT_LEAST_0,
    "INPUT.MIN_SIZE_TRAIN": SIZES,
    "INPUT.MAX_SIZE_TRAIN": AT_LEAST_1,
    "INPUT.MAX_SIZE_TEST": AT_LEAST_0,
    "INPUT.MIN_SIZE_TEST": AT_LEAST_0,
    "INPUT.FORMAT": (lambda value: value in ("BGR", "RGB"), "'BGR' or 'RGB'"),
    "MODEL.DEVICE": (_is_device, "a device of torch, such as 'cuda' or 'cpu'"),
}


def check_values(cfg: CfgNode) -> None:
    """ValueError for the first key whose value no run can use."""
    for key, (fits, expected) in RULES.items():
        value = cfg
        for part in key.split("."):
            value = value[part]
        if not _fits(fits, value):
            raise ValueError(f"{key}={value!r}; expected {expected}")


def _fits(fits: Callable[[Any], bool], value: Any) -> bool:
    """Whether a value is as the rule says; values of another type are not."""
    try:
        return fits(value)
    except (TypeError, ValueError, OverflowError):
        return False
