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
        """
        Args:
            args, kwargs: those of `torch.nn.Conv2d`.
            norm: applied to the output; its parameters are named `norm.*`.
            activation: applied last.
        """
        super().__init__(*args, **kwargs)
        self.norm = norm
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        if self.norm is not None:
            x = self.norm(x)
        if self.activation is not None:
            x = self.activation(x)
        return x


def cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """`torch.cat` that does not copy a single tensor."""
    if not isinstance(tensors, list | tuple):
        raise ValueError(f"cat takes a list or tuple of tensors, got {type(tensors).__name__}")
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim)


def nonzero_tuple(x: Tensor) -> tuple[Tensor, ...]:
    """Indices of the non-zero elements, one (K,) tensor per dimension; a scalar counts as (1,)."""
    return x.nonzero(as_tuple=True)


def empty_input_loss_func_wrapper(loss_func: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Make a loss with `reduction="mean"` return 0, still differentiable, for empty targets."""

    def wrapped_loss_func(
        input: Tensor, target: Tensor, *, reduction: str = "mean", **kwargs: Any
    ) -> Tensor:
        if target.numel() == 0 and reduction == "mean":
            return input.sum() * 0.0  # the mean of nothing would be NaN
        return loss_func(input, target, reduction=reduction, **kwargs)

    return wrapped_loss_func


cross_entropy = empty_input_loss_func_wrapper(F.cross_entropy)


def shapes_to_tensor(x: Sequence[int], device: torch.device | None = None) -> Tensor:
    """Sizes as a 1-D integer tensor; in a trace they stay a function of the traced input."""
    if torch.jit.is_tracing() and all(isinstance(size, Tensor) for size in x):
        sizes = torch.stack(list(x))
        return sizes if device is None else sizes.to(device)
    return torch.as_tensor(x, device=device)
