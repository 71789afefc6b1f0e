"""Stem and residual blocks of ResNets; submodule names are checkpoint keys."""

from collections.abc import Callable
from typing import Any

import torch
from fvcore.nn.weight_init import c2_msra_fill
from torch import Tensor, nn
from torch.nn import functional as F

from detectron2.layers import CNNBlockBase, Conv2d, DeformConv, ModulatedDeformConv, get_norm

# Name of a normalization, as in MODEL.RESNETS.NORM, or a function: channels -> module.
Norm = str | Callable[[int], nn.Module]


def _conv(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    *,
    norm: Norm,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
) -> Conv2d:
    """Convolution without bias, padded to keep the size, with a norm, initialized for a ReLU."""
    conv = Conv2d(
        in_channels,
        out_channels,
        kernel_size=kernel_size,
        stride=stride,
        padding=dilation * (kernel_size // 2),
        dilation=dilation,
        groups=groups,
        bias=False,
        norm=get_norm(norm, out_channels),
    )
    c2_msra_fill(conv)
    return conv


class BasicStem(CNNBlockBase):
    """7x7 convolution and max pooling: (B, in, H, W) -> (B, out, H / 4, W / 4)."""

    def __init__(self, in_channels: int = 3, out_channels: int = 64, norm: Norm = "BN"):
        super().__init__(in_channels, out_channels, 4)
        self.conv1 = _conv(in_channels, out_channels, 7, stride=2, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.conv1(x))
        return F.max_pool2d(x, kernel_size=3, stride=2, padding=1)


class _ResidualBlock(CNNBlockBase):
    """Base of blocks that add their input, projected by `shortcut` if the channels change."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, norm: Norm):
        super().__init__(in_channels, out_channels, stride)
        self.shortcut: Conv2d | None = None
        if in_channels != out_channels:
            self.shortcut = _conv(in_channels, out_channels, 1, stride=stride, norm=norm)

    def join(self, residual: Tensor, x: Tensor) -> Tensor:
        """Block output, from its residual (B, out, H / stride, W / stride) and input x."""
        residual += x if self.shortcut is None else self.shortcut(x)
        return F.relu_(residual)


class BasicBlock(_ResidualBlock):
    """Two 3x3 convolutions, the block of ResNet-18 and 34; the first has the stride."""

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: int = 1, norm: Norm = "BN"
    ) -> None:
        super().__init__(in_channels, out_channels, stride=stride, norm=norm)
        self.conv1 = _conv(in_channels, out_channels, 3, stride=stride, norm=norm)
        self.conv2 = _conv(out_channels, out_channels, 3, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        return self.join(self.conv2(F.relu_(self.conv1(x))), x)


class BottleneckBlock(_ResidualBlock):
    """1x1, 3x3, 1x1 convolutions, the block of ResNet-50, 101 and 152.

    Args:
        bottleneck_channels: channels of the 3x3 convolution.
        num_groups, dilation: of the 3x3 convolution.
        stride_in_1x1: put the stride into the first 1x1 convolution, for MSRA's weights, instead
            of the 3x3 one, for torchvision's.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bottleneck_channels: int,
        stride: int = 1,
        num_groups: int = 1,
        norm: Norm = "BN",
        stride_in_1x1: bool = False,
        dilation: int = 1,
    ) -> None:
        super().__init__(in_channels, out_channels, stride=stride, norm=norm)
        stride_1x1, stride_3x3 = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = _conv(in_channels, bottleneck_channels, 1, stride=stride_1x1, norm=norm)
        self._add_conv2(
            bottleneck_channels, norm, stride=stride_3x3, dilation=dilation, groups=num_groups
        )
        self.conv3 = _conv(bottleneck_channels, out_channels, 1, norm=norm)

    def _add_conv2(self, channels: int, norm: Norm, **options: int) -> None:
        self.conv2 = _conv(channels, channels, 3, norm=norm, **options)

    def _middle(self, x: Tensor) -> Tensor:
        return self.conv2(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.join(self.conv3(F.relu_(self._middle(F.relu_(self.conv1(x))))), x)


class DeformBottleneckBlock(BottleneckBlock):
    """`BottleneckBlock` whose 3x3 convolution is deformable: `conv2_offset` moves its samples.

    Args:
        deform_modulated: also learn a weight for each sample (deformable convolution v2).
        deform_num_groups: groups of channels with their own offsets.
        kwargs: of `BottleneckBlock`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        deform_modulated: bool = False,
        deform_num_groups: int = 1,
        **kwargs: Any,
    ) -> None:
        self.deform_modulated = deform_modulated
        self.deform_num_groups = deform_num_groups
        super().__init__(in_channels, out_channels, **kwargs)
        c2_msra_fill(self.conv2)
        # Zero offsets: training starts from the plain convolution.
        nn.init.zeros_(self.conv2_offset.weight)
        nn.init.zeros_(self.conv2_offset.bias)

    def _add_conv2(self, channels: int, norm: Norm, *, groups: int, **options: int) -> None:
        options |= {"kernel_size": 3, "padding": options["dilation"]}
        numbers = 9 * (3 if self.deform_modulated else 2)  # y, x (and weight) of each sample
        self.conv2_offset = Conv2d(channels, numbers * self.deform_num_groups, **options)
        deformable = ModulatedDeformConv if self.deform_modulated else DeformConv
        self.conv2 = deformable(
            channels,
            channels,
            bias=False,
            groups=groups,
            deformable_groups=self.deform_num_groups,
            norm=get_norm(norm, channels),
            **options,
        )

    def _middle(self, x: Tensor) -> Tensor:
        offsets = self.conv2_offset(x)
        if not self.deform_modulated:
            return self.conv2(x, offsets)
        first, second, weight = offsets.chunk(3, dim=1)
        return self.conv2(x, torch.cat([first, second], dim=1), weight.sigmoid())
