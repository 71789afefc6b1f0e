"""Optimizers that clip gradients before each step."""

from collections.abc import Callable
from enum import Enum
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim import Optimizer

from detectron2.config import CfgNode


class GradientClipType(Enum):
    """Values of `SOLVER.CLIP_GRADIENTS.CLIP_TYPE`: clip each number, or the norm of a parameter."""

    VALUE = "value"
    NORM = "norm"


def create_gradient_clipper(cfg: CfgNode) -> Callable[[Tensor], Any]:
    """Function that clips the gradient of one parameter in place.

    Args:
        cfg: a `SOLVER.CLIP_GRADIENTS` node.
    """
    allowed = [kind.value for kind in GradientClipType]
    if cfg.CLIP_TYPE not in allowed:
        raise ValueError(
            f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE={cfg.CLIP_TYPE!r}: expected one of {allowed}"
        )
    limit, norm_type = cfg.CLIP_VALUE, cfg.NORM_TYPE
    if cfg.CLIP_TYPE == GradientClipType.VALUE.value:
        return lambda parameter: clip_grad_value_(parameter, limit)
    return lambda parameter: clip_grad_norm_(parameter, limit, norm_type)


def maybe_add_gradient_clipping(
    cfg: CfgNode, optimizer: type[Optimizer] | Optimizer
) -> type[Optimizer] | Optimizer:
    """`optimizer`, which clips gradients in each step if `cfg.SOLVER.CLIP_GRADIENTS.ENABLED`.

    Args:
        optimizer: a class (a subclass is returned) or an instance (its class is changed).
    """
    if not cfg.SOLVER.CLIP_GRADIENTS.ENABLED:
        return optimizer
    clip = create_gradient_clipper(cfg.SOLVER.CLIP_GRADIENTS)
    if not isinstance(optimizer, Optimizer):
        return _with_clipping(optimizer, clip)
    optimizer.__class__ = _with_clipping(type(optimizer), clip)
    return optimizer


def _with_clipping(base: type[Optimizer], clip: Callable[[Tensor], Any]) -> type[Optimizer]:
    def clip_all(optimizer: Optimizer) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                # A part of the network that the batch did not use has no gradient.
                if parameter.grad is not None:
                    clip(parameter)

    def step(self: Optimizer, closure: Callable[[], Any] | None = None) -> Any:
        if closure is None:
            clip_all(self)
            return base.step(self)

        def clipped_closure() -> Any:
            loss = closure()
            clip_all(self)
            return loss

        return base.step(self, torch.enable_grad()(clipped_closure))

    return type(f"{base.__name__}WithGradientClip", (base,), {"step": step})
