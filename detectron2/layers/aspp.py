"""Atrous spatial pyramid pooling (DeepLab v3)."""

from collections.abc import Callable, Sequence
from copy import deepcopy

import torch
from fvcore.nn.weight_init import c2_xavier_fill
from torch import Tensor, nn
from torch.nn import functional as F

from .batch_norm import get_norm
from .blocks import DepthwiseSeparableConv2d
from .wrappers import Conv2d


class ASPP(nn.Module):
    """See an image at several scales at once: (N, in, H, W) -> (N, out, H, W).

    `convs` holds a 1x1 convolution, three dilated 3x3 ones and image pooling; `project` joins them.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        dilations: Sequence[int],
        *,
        norm: str | Callable[[int], nn.Module],
        activation: Callable[[Tensor], Tensor],
        pool_kernel_size: tuple[int, int] | None = None,
        dropout: float = 0.0,
        use_depthwise_separable_conv: bool = False,
    ):
        """
        Args:
            dilations: three rates.
            norm: as `get_norm` takes it; not used in the pooling branch.
            activation: each convolution gets a copy of its own.
            pool_kernel_size: window of the pooling branch, of which H and W must be multiples; by
                default the whole map.
            dropout: probability after the projection.
            use_depthwise_separable_conv: for the dilated convolutions.
        """
        super().__init__()
        if len(dilations) != 3:
            raise ValueError(f"ASPP expects 3 dilations, got {dilations}")
        self.pool_kernel_size = pool_kernel_size
        self.dropout = dropout

        pool = nn.AdaptiveAvgPool2d(1)
        if pool_kernel_size is not None:
            pool = nn.AvgPool2d(pool_kernel_size, stride=1)
        # No norm after pooling: one value per channel and image is no batch to normalise.
        pooling = nn.Sequential(pool, _conv(in_channels, out_channels, 1, 1, "", activation))
        dilated = _separable_conv if use_depthwise_separable_conv else _conv
        self.convs = nn.ModuleList(
            [
                _conv(in_channels, out_channels, 1, 1, norm, activation),
                *(dilated(in_channels, out_channels, 3, d, norm, activation) for d in dilations),
                pooling,
            ]
        )
        joined_channels = len(self.convs) * out_channels
        self.project = _conv(joined_channels, out_channels, 1, 1, norm, activation)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-2:]
        if self.pool_kernel_size is not None:
            if any(side % window for side, window in zip(size, self.pool_kernel_size, strict=True)):
                raise ValueError(
                    f"the feature map's size {tuple(size)} must be a multiple of "
                    f"pool_kernel_size {self.pool_kernel_size}"
                )
        branches = [conv(x) for conv in self.convs]
        branches[-1] = F.interpolate(branches[-1], size=size, mode="bilinear", align_corners=False)
        joined = self.project(torch.cat(branches, dim=1))
        return F.dropout(joined, self.dropout, training=self.training) if self.dropout else joined


def _conv(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    dilation: int,
    norm: str | Callable[[int], nn.Module],
    activation: Callable[[Tensor], Tensor],
) -> Conv2d:
    """A convolution that keeps the map's size, with its own norm and its own activation."""
    layer = Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        padding=dilation * (kernel_size // 2),
        dilation=dilation,
        bias=not norm,
        norm=get_norm(norm, out_channels),
        activation=deepcopy(activation),
    )
    c2_xavier_fill(layer)
    return layer


def _separable_conv(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    dilation: int,
    norm: str | Callable[[int], nn.Module],
    activation: Callable[[Tensor], Tensor],
) -> DepthwiseSeparableConv2d:
    """What `_conv` is, in two steps."""
    return DepthwiseSeparableConv2d(
        in_channels,
        out_channels,
        kernel_size,
        padding=dilation * (kernel_size // 2),
        dilation=dilation,
        norm1=norm,
        activation1=deepcopy(activation),
        norm2=norm,
        activation2=deepcopy(activation),
    )
