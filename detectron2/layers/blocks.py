"""The base class of backbone blocks."""

from torch import nn

from .batch_norm import FrozenBatchNorm2d


class CNNBlockBase(nn.Module):
    """A block (N, in_channels, H, W) -> (N, out_channels, H / stride, W / stride)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.stride = stride

    def freeze(self) -> "CNNBlockBase":
        """Turn off gradients and turn batch norms into constants; returns the block itself."""
        return FrozenBatchNorm2d.convert_frozen_batchnorm(self.requires_grad_(False))
