"""MaskRefineNet: a U-Net that redraws an instance's mask from its image crop, point and prior mask.

This is the network as it is defined. `fast_forms` computes the same function in less time.
"""

from typing import NamedTuple

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from .points import class_point_map

ENCODERS = ("resnet18", "resnet34", "resnet50", "resnet101")
IMAGE_CHANNELS = 3


class Widths(NamedTuple):
    """Channels of the encoder (stride 2, 4, 8, 16, 32) and of the path back to stride 2."""

    encoder: tuple[int, int, int, int, int]
    aspp: int
    decoders: tuple[tuple[int, int], ...]  # (middle, out) of decoder_3 .. decoder_0

    @classmethod
    def of(cls, encoder: str) -> "Widths":
        """ResNet-50/101 get the published widths; the smaller encoders scale them, 64 at least."""
        if encoder in ("resnet18", "resnet34"):
            return cls((64, 64, 128, 256, 512), 128, ((128, 64), (64, 64), (64, 64), (64, 64)))
        decoders = ((512, 256), (256, 128), (128, 64), (64, 64))
        return cls((64, 256, 512, 1024, 2048), 512, decoders)


def conv_bn_relu(in_channels: int, out_channels: int, kernel: int, dilation: int = 1) -> nn.Module:
    """A convolution that keeps the size, batch norm, ReLU."""
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, 1, padding, dilation, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class ASPP(nn.Module):
    """Context at five ranges, the whole image first: (N, C, h, w) -> (N, K, h, w)."""

    def __init__(self, in_channels: int, channels: int, dilations: tuple[int, ...] = (3, 6, 9)):
        super().__init__()
        pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), conv_bn_relu(in_channels, channels, 1))
        branches = [pooled, conv_bn_relu(in_channels, channels, 1)]
        branches += [conv_bn_relu(in_channels, channels, 3, dilation) for dilation in dilations]
        self.convs = nn.ModuleList(branches)
        self.project = conv_bn_relu(channels * len(branches), channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.convs[0](x).expand(-1, -1, *x.shape[-2:])
        return self.project(torch.cat([pooled, *[conv(x) for conv in self.convs[1:]]], dim=1))


class Decoder(nn.Module):
    """Enlarge deep features to the size of finer ones and merge both."""

    def __init__(self, in_channels: int, middle: int, out_channels: int):
        super().__init__()
        self.conv = nn.Sequential(
            conv_bn_relu(in_channels, middle, 1), conv_bn_relu(middle, out_channels, 3)
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.conv(torch.cat([enlarge(x, skip.shape[-2:]), skip], dim=1))


def enlarge(x: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Bilinear resize of (N, C, h, w)."""
    return F.interpolate(x, size=size_hw, mode="bilinear", align_corners=False)


class MaskRefineNet(nn.Module):
    """Background and foreground logits of one instance a crop.

    Args:
        num_classes: C, the number of categories; class k draws its point on map channel k + 1.
        encoder: one of `ENCODERS`; "resnet101" is the released one.
        class_agnostic: draw the points of all classes on one single channel.
    """

    def __init__(
        self,
        num_classes: int = 80,
        *,
        encoder: str = "resnet101",
        class_agnostic: bool = False,
    ):
        super().__init__()
        if encoder not in ENCODERS:
            raise ValueError(f"encoder={encoder!r}; expected one of {ENCODERS}")
        if num_classes < 1:
            raise ValueError(f"num_classes={num_classes}; at least 1 is needed")
        self.num_classes, self.encoder, self.class_agnostic = num_classes, encoder, class_agnostic
        self.point_channels = 1 if class_agnostic else num_classes + 1
        widths = Widths.of(encoder)
        trunk = getattr(torchvision.models, encoder)(weights=None)
        in_channels = IMAGE_CHANNELS + self.point_channels + 1
        stem = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        # The names below are checkpoint keys.
        self.layer0 = nn.Sequential(stem, trunk.bn1, trunk.relu)
        self.layer1 = nn.Sequential(trunk.maxpool, trunk.layer1)
        self.layer2, self.layer3, self.layer4 = trunk.layer2, trunk.layer3, trunk.layer4
        self.aspp = ASPP(widths.encoder[4], widths.aspp)
        deep = widths.aspp
        for level, (middle, out) in zip((3, 2, 1, 0), widths.decoders, strict=True):
            setattr(self, f"decoder_{level}", Decoder(widths.encoder[level] + deep, middle, out))
            deep = out
        self.head = nn.Conv2d(deep, 2, 1)
        nn.init.normal_(self.head.weight, std=0.001)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits at the input's size.

        Args:
            x: (N, 3 + P + 1, H, W) float: normalized RGB image, class-point map of P channels
                (C + 1, or 1 if class-agnostic), prior mask. `dense_input` makes it.

        Returns:
            (N, 2, H, W): background, foreground.
        """
        skip0 = self.layer0(x)  # stride 2
        skip1 = self.layer1(skip0)  # 4
        skip2 = self.layer2(skip1)  # 8
        skip3 = self.layer3(skip2)  # 16
        deep = self.aspp(self.layer4(skip3))  # 32
        deep = self.decoder_3(deep, skip3)
        deep = self.decoder_2(deep, skip2)
        deep = self.decoder_1(deep, skip1)
        deep = self.decoder_0(deep, skip0)
        return enlarge(self.head(deep), x.shape[-2:])

    def dense_input(self, x: Tensor, points: Tensor, class_ids: Tensor) -> Tensor:
        """The input of `forward` from its parts: (N, 3 + P + 1, H, W).

        Args:
            x: (N, 4, H, W) float: normalized RGB image, prior mask.
            points: (N, 2) int64, (x, y) pixels of the input; one outside it draws no Gaussian.
            class_ids: (N,) int64 in [0, C); a class-agnostic network ignores their values.
        """
        channels = self.point_channel(class_ids)
        maps = class_point_map(points, channels, self.point_channels, tuple(x.shape[-2:]))
        return torch.cat([x[:, :IMAGE_CHANNELS], maps.to(x.dtype), x[:, IMAGE_CHANNELS:]], dim=1)

    def point_channel(self, class_ids: Tensor) -> Tensor:
        """Map channel of each class, in training and refinement alike: index + 1; (N,) int64."""
        return torch.zeros_like(class_ids) if self.class_agnostic else class_ids + 1
