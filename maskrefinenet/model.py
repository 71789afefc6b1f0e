"""MaskRefineNet: a U-Net that redraws an instance's mask from its image crop, point and prior.

Its 7x7 stem reads 3 + (C + 1) + 1 channels, of which all but 5 are zero for any one instance. The
sparse form computes the same stem from the image, the prior and the point alone.
"""

from typing import NamedTuple

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from .points import RADIUS, gaussian_windows

ENCODERS = ("resnet18", "resnet34", "resnet50", "resnet101")
IMAGE_CHANNELS = 3
STEM_STRIDE, STEM_PADDING = 2, 3
STEM_KERNEL = 2 * STEM_PADDING + 1
# Stem outputs that see a Gaussian: at most this many in a row (support + kernel, at stride 2).
STEM_REACH = (2 * RADIUS + 2 * STEM_PADDING) // STEM_STRIDE + 1


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


class SameConv2d(nn.Conv2d):
    """A convolution that keeps the size; taps that reach nothing but padding are left out."""

    def forward(self, x: Tensor) -> Tensor:
        if self.kernel_size == (3, 3) and self.dilation[0] >= max(x.shape[-2:]):
            return F.conv2d(x, self.weight[:, :, 1:2, 1:2], self.bias)
        return super().forward(x)


def conv_bn_relu(in_channels: int, out_channels: int, kernel: int, dilation: int = 1) -> nn.Module:
    """A convolution that keeps the size, batch norm, ReLU."""
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        SameConv2d(
            in_channels, out_channels, kernel, padding=padding, dilation=dilation, bias=False
        ),
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
    """Bring deep features to the size of finer ones and merge both."""

    def __init__(self, in_channels: int, middle: int, out_channels: int):
        super().__init__()
        self.conv = nn.Sequential(
            conv_bn_relu(in_channels, middle, 1), conv_bn_relu(middle, out_channels, 3)
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        conv, norm, relu = self.conv[0]
        # A 1x1 convolution and a resize commute: the deep part is convolved while it is small.
        x = F.conv2d(x, conv.weight[:, : x.shape[1]])
        x = F.interpolate(x, size=skip.shape[-2:], mode="bilinear", align_corners=False)
        x = x + F.conv2d(skip, conv.weight[:, -skip.shape[1] :], conv.bias)
        return self.conv[1](relu(norm(x)))


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
        stem = nn.Conv2d(
            in_channels, 64, STEM_KERNEL, stride=STEM_STRIDE, padding=STEM_PADDING, bias=False
        )
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

    def forward(
        self, x: Tensor, points: Tensor | None = None, class_ids: Tensor | None = None
    ) -> Tensor:
        """Logits at the input's size.

        Args:
            x: without points, the dense input (N, 3 + C + 1 + 1, H, W) float: normalised RGB image,
                class-point map, prior mask. With points, the sparse input (N, 4, H, W) float:
                normalised RGB image, prior mask.
            points: (N, 2) int64, (x, y) pixels of the input; one outside it draws no Gaussian.
            class_ids: (N,) int64 in [0, C); not read by a class-agnostic network.

        Returns:
            (N, 2, H, W): background, foreground. Dense and sparse inputs agree.
        """
        size = x.shape[-2:]
        if points is None:
            x = self.layer0[0](x)
        else:
            x = self._sparse_stem(x, points, class_ids)
        skip0 = self.layer0[2](self.layer0[1](x))  # stride 2
        skip1 = self.layer1(skip0)
        skip2 = self.layer2(skip1)
        skip3 = self.layer3(skip2)
        x = self.aspp(self.layer4(skip3))  # stride 32
        x = self.decoder_3(x, skip3)
        x = self.decoder_2(x, skip2)
        x = self.decoder_1(x, skip1)
        x = self.decoder_0(x, skip0)
        return F.interpolate(self.head(x), size=size, mode="bilinear", align_corners=False)

    def point_channel(self, class_ids: Tensor) -> Tensor:
        """Map channel of each class, in training and refinement alike: index + 1; (N,) int64."""
        return torch.zeros_like(class_ids) if self.class_agnostic else class_ids + 1

    def _sparse_stem(self, x: Tensor, points: Tensor, class_ids: Tensor | None) -> Tensor:
        """The stem convolution of the dense input, from its non-zero channels: (N, 64, h, w)."""
        if class_ids is None:
            if not self.class_agnostic:
                raise ValueError("points need class_ids, unless the network is class-agnostic")
            class_ids = points.new_zeros(len(points))
        stem = self.layer0[0]
        weight = stem.weight
        dense = torch.cat([weight[:, :IMAGE_CHANNELS], weight[:, -1:]], dim=1)
        out = F.conv2d(x, dense, stem.bias, stride=STEM_STRIDE, padding=STEM_PADDING)
        count, channels, height, width = out.shape
        # A convolution is linear: the Gaussian's part is added where it reaches, and only there.
        reach = torch.tensor([min(STEM_REACH, width), min(STEM_REACH, height)], device=x.device)
        limit = torch.tensor([width, height], device=x.device) - reach
        first = -(-(points - RADIUS - STEM_PADDING) // STEM_STRIDE)  # first output that sees it
        first = torch.minimum(first.clamp(min=0), limit)  # (N, 2), x and y
        reach_w, reach_h = min(STEM_REACH, width), min(STEM_REACH, height)
        window = tuple(STEM_STRIDE * (n - 1) + STEM_KERNEL for n in (reach_h, reach_w))
        gaussians = gaussian_windows(
            points, STEM_STRIDE * first - STEM_PADDING, window, tuple(x.shape[-2:])
        )
        kernels = weight[:, IMAGE_CHANNELS + self.point_channel(class_ids)]  # (64, N, 7, 7)
        kernels = kernels.transpose(0, 1).reshape(count * channels, 1, STEM_KERNEL, STEM_KERNEL)
        part = F.conv2d(gaussians[None].to(x.dtype), kernels, stride=STEM_STRIDE, groups=count)
        rows = first[:, 1, None] + torch.arange(reach_h, device=x.device)
        columns = first[:, 0, None] + torch.arange(reach_w, device=x.device)
        index = (rows[:, :, None] * width + columns[:, None, :]).view(count, 1, -1)
        part = part.view(count, channels, -1)
        out = out.flatten(2).scatter_add(2, index.expand_as(part), part)
        return out.view(count, channels, height, width)
