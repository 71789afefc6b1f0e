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
    """Values of `SOLVER.CLIP_GRADIENTS.CLIP_TYPE`.

    VALUE clips each number, NORM the norm of each parameter, FULL_MODEL the norm of all together.
    """

    VALUE = "value"
    NORM = "norm"
    FULL_MODEL = "full_model"


def create_gradient_clipper(cfg: CfgNode) -> Callable[[Tensor | list[Tensor]], Any]:
    """Function that clips the gradient of one parameter, or of several together, in place.

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
    together = cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE == GradientClipType.FULL_MODEL.value
    if not isinstance(optimizer, Optimizer):
        return _with_clipping(optimizer, clip, together)
    optimizer.__class__ = _with_clipping(type(optimizer), clip, together)
    return optimizer


def _with_clipping(
    base: type[Optimizer], clip: Callable[[Tensor | list[Tensor]], Any], together: bool
) -> type[Optimizer]:
    def clip_all(optimizer: Optimizer) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        # A part of the network that the batch did not use has no gradient.
        used = [p for p in parameters if p.grad is not None]
        for item in [used] if together else used:
            clip(item)

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
