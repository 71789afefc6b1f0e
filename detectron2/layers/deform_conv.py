"""Deformable convolutions (v1, and v2 with modulation) over torchvision's operator."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.utils import _pair
from torchvision.ops import deform_conv2d

_SHOWN = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")


class ModulatedDeformConv(nn.Module):
    """A convolution that samples its input at given offsets, with a weight for each sample."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        deformable_groups: int = 1,
        bias: bool = True,
        norm: nn.Module | None = None,
        activation: Callable[[Tensor], Tensor] | None = None,
    ):
        """
        Args:
            deformable_groups: channel groups that have their own offsets and sample weights.
            norm, activation: applied to the output, in this order.
        """
        super().__init__()
        if in_channels % groups or out_channels % groups:
            raise ValueError(
                f"in_channels {in_channels} and out_channels {out_channels} must be multiples of "
                f"groups {groups}"
            )
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size = _pair(kernel_size)
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.groups, self.deformable_groups = groups, deformable_groups
        self.norm, self.activation = norm, activation
        self.weight = nn.Parameter(
            torch.empty(out_channels, in_channels // groups, *self.kernel_size)
        )
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self._initialize()

    def _initialize(self) -> None:
        bound = 1 / math.sqrt(self.in_channels * math.prod(self.kernel_size))
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor | None) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H_out, W_out).

        Args:
            offset: (N, 2 * deformable_groups * kernel height * kernel width, H_out, W_out): (y, x)
                of each kernel element, in input pixels.
            mask: (N, deformable_groups * kernel height * kernel width, H_out, W_out): weight of
                each sample; None: 1 everywhere.
        """
        expected = 2 * self.deformable_groups * math.prod(self.kernel_size)
        if offset.shape[1] != expected:
            # RuntimeError, as for every wrong shape that the operator itself finds.
            raise RuntimeError(f"offset must have {expected} channels, got {offset.shape[1]}")
        geometry = (_pair(self.stride), _pair(self.padding), _pair(self.dilation))
        x = deform_conv2d(x, offset, self.weight, self.bias, *geometry, mask=mask)
        for layer in (self.norm, self.activation):
            x = x if layer is None else layer(x)
        return x

    def extra_repr(self) -> str:
        shown = {name: getattr(self, name) for name in (*_SHOWN, "deformable_groups")}
        shown["bias"] = self.bias is not None
        return ", ".join(f"{name}={value}" for name, value in shown.items())


class DeformConv(ModulatedDeformConv):
    """Deformable convolution v1: without sample weights and without bias."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        deformable_groups: int = 1,
        bias: bool = False,
        norm: nn.Module | None = None,
        activation: Callable[[Tensor], Tensor] | None = None,
    ):
        if bias:
            raise ValueError("DeformConv has no bias; ModulatedDeformConv has one")
        geometry = (_pair(stride), _pair(padding), _pair(dilation), groups, deformable_groups)
        super().__init__(
            *(in_channels, out_channels, kernel_size, *geometry),
            **dict(bias=False, norm=norm, activation=activation),
        )

    def _initialize(self) -> None:
        nn.init.kaiming_uniform_(self.weight, nonlinearity="relu")

    def forward(self, x: Tensor, offset: Tensor) -> Tensor:
        """As `ModulatedDeformConv`, every sample with weight 1."""
        return super().forward(x, offset, None)
