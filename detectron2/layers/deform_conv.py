"""Deformable convolutions (v1, and v2 with modulation) over torchvision's operator."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.utils import _pair
from torchvision.ops import deform_conv2d


class DeformConv(nn.Module):
    """A convolution that samples its input at learned offsets (Deformable ConvNets v1)."""

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
        """
        Args:
            deformable_groups: channel groups with offsets of their own.
            bias: must be False; v1 has none.
            norm, activation: applied to the output, in this order.
        """
        super().__init__()
        if bias:
            raise ValueError("DeformConv has no bias; ModulatedDeformConv has one")
        _check_groups(in_channels, out_channels, groups)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = _pair(kernel_size)
        self.stride = _pair(stride)
        self.padding = _pair(padding)
        self.dilation = _pair(dilation)
        self.groups = groups
        self.deformable_groups = deformable_groups
        self.norm = norm
        self.activation = activation
        self.weight = nn.Parameter(
            torch.empty(out_channels, in_channels // groups, *self.kernel_size)
        )
        self.bias = None
        nn.init.kaiming_uniform_(self.weight, nonlinearity="relu")

    def forward(self, x: Tensor, offset: Tensor) -> Tensor:
        """
        Args:
            x: (N, in_channels, H, W).
            offset: (N, 2 * deformable_groups * kernel height * kernel width, H_out, W_out): (y, x)
                of each kernel element, in input pixels.

        Returns:
            (N, out_channels, H_out, W_out)
        """
        return _deform(self, x, offset, mask=None)

    def extra_repr(self) -> str:
        return _describe(self, has_bias=False)


class ModulatedDeformConv(nn.Module):
    """`DeformConv` whose samples also have learned weights (Deformable ConvNets v2)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        deformable_groups: int = 1,
        bias: bool = True,
        norm: nn.Module | None = None,
        activation: Callable[[Tensor], Tensor] | None = None,
    ):
        """
        Args:
            deformable_groups: channel groups with offsets and weights of their own.
            norm, activation: applied to the output, in this order.
        """
        super().__init__()
        _check_groups(in_channels, out_channels, groups)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = _pair(kernel_size)
        self.stride = stride
        self.padding = padding
        self.dilation = dilation
        self.groups = groups
        self.deformable_groups = deformable_groups
        self.norm = norm
        self.activation = activation
        self.weight = nn.Parameter(
            torch.empty(out_channels, in_channels // groups, *self.kernel_size)
        )
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        bound = 1 / math.sqrt(in_channels * math.prod(self.kernel_size))
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        """
        Args:
            x: (N, in_channels, H, W).
            offset: (N, 2 * deformable_groups * kernel height * kernel width, H_out, W_out): (y, x)
                of each kernel element, in input pixels.
            mask: (N, deformable_groups * kernel height * kernel width, H_out, W_out): weight of
                each sample.

        Returns:
            (N, out_channels, H_out, W_out)
        """
        return _deform(self, x, offset, mask)

    def extra_repr(self) -> str:
        return _describe(self, has_bias=self.bias is not None)


def _check_groups(in_channels: int, out_channels: int, groups: int) -> None:
    if in_channels % groups or out_channels % groups:
        raise ValueError(
            f"in_channels {in_channels} and out_channels {out_channels} must be multiples of "
            f"groups {groups}"
        )


def _deform(
    conv: DeformConv | ModulatedDeformConv, x: Tensor, offset: Tensor, mask: Tensor | None
) -> Tensor:
    expected = 2 * conv.deformable_groups * math.prod(conv.kernel_size)
    if offset.shape[1] != expected:
        # RuntimeError, as for every wrong shape that the operator itself finds.
        raise RuntimeError(f"offset must have {expected} channels, got {offset.shape[1]}")
    x = deform_conv2d(
        x,
        offset,
        conv.weight,
        conv.bias,
        stride=_pair(conv.stride),
        padding=_pair(conv.padding),
        dilation=_pair(conv.dilation),
        mask=mask,
    )
    if conv.norm is not None:
        x = conv.norm(x)
    if conv.activation is not None:
        x = conv.activation(x)
    return x


def _describe(conv: DeformConv | ModulatedDeformConv, has_bias: bool) -> str:
    return (
        f"in_channels={conv.in_channels}, out_channels={conv.out_channels}, "
        f"kernel_size={conv.kernel_size}, stride={conv.stride}, padding={conv.padding}, "
        f"dilation={conv.dilation}, groups={conv.groups}, "
        f"deformable_groups={conv.deformable_groups}, bias={has_bias}"
    )
