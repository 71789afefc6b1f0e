"""PyTorch layers under the names that Detectron2 code uses, a few with small additions."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BatchNorm2d = nn.BatchNorm2d
ConvTranspose2d = nn.ConvTranspose2d
Linear = nn.Linear
interpolate = F.interpolate


class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d` followed by an optional norm and an optional activation."""

    def __init__(
        self,
        *args: Any,
        norm: nn.Module | None = None,
        activation: Callable[[Tensor], Tensor] | None = None,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.norm = norm
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        for layer in (self.norm, self.activation):
            x = x if layer is None else layer(x)
        return x


def cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """`torch.cat` that does not copy a single tensor."""
    if not isinstance(tensors, list | tuple):
        raise ValueError(f"cat takes a list or tuple of tensors, got {type(tensors).__name__}")
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim)


def nonzero_tuple(x: Tensor) -> tuple[Tensor, ...]:
    """Indices of the nonzero elements, one (K,) tensor per dimension; a scalar counts as (1,)."""
    return x.nonzero(as_tuple=True)


def cross_entropy(input: Tensor, target: Tensor, *, reduction: str = "mean", **kw: Any) -> Tensor:
    """`F.cross_entropy`; the mean over an empty target is a differentiable 0 instead of NaN."""
    if target.numel() == 0 and reduction == "mean":
        reduction = "sum"
    return F.cross_entropy(input, target, reduction=reduction, **kw)
