"""Stem and residual blocks of ResNets; submodule names are checkpoint keys."""

from collections.abc import Callable

import torch
from fvcore.nn.weight_init import c2_msra_fill
from torch import Tensor, nn
from torch.nn import functional as F

from detectron2.layers import CNNBlockBase, Conv2d, DeformConv, ModulatedDeformConv, get_norm

__all__ = ["BasicBlock", "BasicStem", "BottleneckBlock", "DeformBottleneckBlock"]

# The name of a normalisation, as in MODEL.RESNETS.NORM, or a function from channels to a module.
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
    """Convolution without bias, padded to keep its size, normalised, initialised for a ReLU."""
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
    """Base of blocks that add their input, projected by `shortcut` where channels change."""

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
        stride_in_1x1: give the stride to the first 1x1 convolution, as MSRA's weights need, and not
            to the 3x3 one, as torchvision's need.
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
        self.conv2 = _conv(
            bottleneck_channels,
            bottleneck_channels,
            3,
            stride=stride_3x3,
            dilation=dilation,
            groups=num_groups,
            norm=norm,
        )
        self.conv3 = _conv(bottleneck_channels, out_channels, 1, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        return self.join(self.conv3(F.relu_(self.conv2(F.relu_(self.conv1(x))))), x)


class DeformBottleneckBlock(_ResidualBlock):
    """`BottleneckBlock` whose 3x3 convolution is deformable: it samples where `conv2_offset` says.

    Args:
        deform_modulated: learn a weight for each sample too (deformable convolution v2).
        deform_num_groups: groups of channels that have their own offsets.
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
        deform_modulated: bool = False,
        deform_num_groups: int = 1,
    ) -> None:
        super().__init__(in_channels, out_channels, stride=stride, norm=norm)
        self.deform_modulated = deform_modulated
        stride_1x1, stride_3x3 = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = _conv(in_channels, bottleneck_channels, 1, stride=stride_1x1, norm=norm)
        samples = 3 * 3
        self.conv2_offset = Conv2d(  # y and x for each sample, and its weight
            bottleneck_channels,
            samples * (3 if deform_modulated else 2) * deform_num_groups,
            kernel_size=3,
            stride=stride_3x3,
            padding=dilation,
            dilation=dilation,
        )
        deformable = ModulatedDeformConv if deform_modulated else DeformConv
        self.conv2 = deformable(
            bottleneck_channels,
            bottleneck_channels,
            kernel_size=3,
            stride=stride_3x3,
            padding=dilation,
            bias=False,
            groups=num_groups,
            dilation=dilation,
            deformable_groups=deform_num_groups,
            norm=get_norm(norm, bottleneck_channels),
        )
        self.conv3 = _conv(bottleneck_channels, out_channels, 1, norm=norm)
        c2_msra_fill(self.conv2)
        # Zero offsets: training starts from the plain convolution.
        nn.init.zeros_(self.conv2_offset.weight)
        nn.init.zeros_(self.conv2_offset.bias)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu_(self.conv1(x))
        if self.deform_modulated:
            first, second, weight = self.conv2_offset(out).chunk(3, dim=1)
            out = self.conv2(out, torch.cat([first, second], dim=1), weight.sigmoid())
        else:
            out = self.conv2(out, self.conv2_offset(out))
        return self.join(self.conv3(F.relu_(out)), x)
