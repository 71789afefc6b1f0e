"""Optimizers that clip gradients before each step."""

from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim import Optimizer

from detectron2.config import CfgNode

__all__ = [
    "GradientClipType",
    "add_gradient_clipping",
    "create_gradient_clipper",
    "maybe_add_gradient_clipping",
]

# Clips one parameter's gradient, or those of several together, in place.
GradientClipper = Callable[[Tensor | Iterable[Tensor]], Any]


class GradientClipType(Enum):
    """What `SOLVER.CLIP_GRADIENTS.CLIP_TYPE` may be: clip each value, or each parameter's norm."""

    VALUE = "value"
    NORM = "norm"


def create_gradient_clipper(cfg: CfgNode) -> GradientClipper:
    """Function that clips a parameter's gradient as `cfg`, a `SOLVER.CLIP_GRADIENTS` node, says."""
    allowed = [kind.value for kind in GradientClipType]
    if cfg.CLIP_TYPE not in allowed:
        raise ValueError(
            f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE={cfg.CLIP_TYPE!r}: expected one of {allowed}"
        )
    limit, norm_type = cfg.CLIP_VALUE, cfg.NORM_TYPE
    if GradientClipType(cfg.CLIP_TYPE) is GradientClipType.VALUE:
        return lambda parameters: clip_grad_value_(parameters, limit)
    return lambda parameters: clip_grad_norm_(parameters, limit, norm_type)


def add_gradient_clipping(
    optimizer: type[Optimizer],
    *,
    per_param_clipper: GradientClipper | None = None,
    global_clipper: GradientClipper | None = None,
) -> type[Optimizer]:
    """Subclass of `optimizer` whose `step` clips first: each parameter alone, or all at once."""
    if (per_param_clipper is None) == (global_clipper is None):
        raise ValueError("give exactly one of per_param_clipper and global_clipper")

    def clip(groups: list[dict[str, Any]]) -> None:
        # A part of the network that a batch did not use has no gradient.
        parameters = [p for group in groups for p in group["params"] if p.grad is not None]
        if global_clipper is not None:
            global_clipper(parameters)
            return
        for parameter in parameters:
            per_param_clipper(parameter)

    def step(self: Optimizer, closure: Callable[[], Any] | None = None) -> Any:
        if closure is None:
            clip(self.param_groups)
            return super(clipping, self).step()

        def clipped_closure() -> Any:
            loss = closure()
            clip(self.param_groups)
            return loss

        return super(clipping, self).step(torch.enable_grad()(clipped_closure))

    clipping = type(f"{optimizer.__name__}WithGradientClip", (optimizer,), {"step": step})
    return clipping


def maybe_add_gradient_clipping(
    cfg: CfgNode, optimizer: type[Optimizer] | Optimizer
) -> type[Optimizer] | Optimizer:
    """`optimizer`, clipping gradients if `cfg.SOLVER.CLIP_GRADIENTS.ENABLED`.

    Args:
        optimizer: a class, which gets a subclass, or an instance, whose class is changed.
    """
    if not cfg.SOLVER.CLIP_GRADIENTS.ENABLED:
        return optimizer
    is_instance = isinstance(optimizer, Optimizer)
    clipper = create_gradient_clipper(cfg.SOLVER.CLIP_GRADIENTS)
    clipping = add_gradient_clipping(
        type(optimizer) if is_instance else optimizer, per_param_clipper=clipper
    )
    if not is_instance:
        return clipping
    optimizer.__class__ = clipping
    return optimizer
