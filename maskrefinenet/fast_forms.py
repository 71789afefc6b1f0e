"""MaskRefineNet in less time: exact rewritings of the plain network, with its own parameters.

Each form below is an identity between real numbers, so that values and gradients differ from those
of `MaskRefineNet` by rounding only. W is a kernel, * a convolution, U the bilinear resize.

1. Sparse stem. The class-point map is zero but for a Gaussian g in the channel c of the instance's
   class. A convolution is linear and sums over input channels:
       W * [image, map, prior] = W[image, prior] * [image, prior] + W[c] * g
   The second term is zero wherever the 7 x 7 window misses the support of g, 39 x 39 pixels. At
   stride 2 it reaches at most 23 x 23 outputs; only these are computed and added.
2. One product a batch. Instance n has its own kernel W[c_n] for its Gaussian g_n. All of them
   are one grouped convolution, a group an instance:
       [W[c_1] * g_1, ..., W[c_N] * g_N] = groups(W[c_1], ..., W[c_N]) * [g_1, ..., g_N]
3. Convolve, then enlarge. A 1 x 1 convolution mixes channels at each pixel, U mixes pixels in each
   channel, with weights that sum over pixels and do not depend on the channel. Both are linear,
   and so they commute; and a convolution splits over its input channels, deep ones x, skip s:
       W * [U x, s] = W_x * (U x) + W_s * s = U (W_x * x) + W_s * s
   The left side convolves the deep features at the large size, the right side at the small one.
4. Dropped taps. A 3 x 3 kernel with dilation d reads x[i + d k, j + d l] for k, l in -1, 0, 1. On
   an h x w map with d >= h and d >= w, every tap but the center reads the zero padding:
       W * x = W[center] * x
5. Folded batch norms (evaluation only). With fixed statistics a batch norm is affine:
       g (W * x - m) / s + b = (g / s W) * x + (b - g m / s)
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.resnet import BasicBlock, Bottleneck

from .model import ASPP, IMAGE_CHANNELS, Decoder, MaskRefineNet, enlarge
from .points import RADIUS, gaussian_windows


class FastMaskRefineNet(nn.Module):
    """A MaskRefineNet in its fast forms, for training and for refinement.

    It holds the network itself: parameters, gradients and buffers are the network's own, and
    `train`, `eval` and `to` act on it. Save and load the network, not this wrapper.
    """

    def __init__(self, network: MaskRefineNet):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, points: Tensor, class_ids: Tensor) -> Tensor:
        """`network(network.dense_input(x, points, class_ids))`, without the dense input.

        Args:
            x: (N, 4, H, W) float: normalized RGB image, prior mask.
            points: (N, 2) int64, (x, y) pixels of the input; one outside it draws no Gaussian.
            class_ids: (N,) int64 in [0, C); a class-agnostic network ignores their values.

        Returns:
            (N, 2, H, W): logits of background and foreground.
        """
        net = self.network
        stem, norm, relu = net.layer0
        channels = net.point_channel(class_ids)
        skip0 = relu(norm(sparse_stem(stem, x, points, channels)))
        skip1 = net.layer1(skip0)
        skip2 = net.layer2(skip1)
        skip3 = net.layer3(skip2)
        deep = aspp_without_idle_taps(net.aspp, net.layer4(skip3))
        deep = convolve_then_enlarge(net.decoder_3, deep, skip3)
        deep = convolve_then_enlarge(net.decoder_2, deep, skip2)
        deep = convolve_then_enlarge(net.decoder_1, deep, skip1)
        deep = convolve_then_enlarge(net.decoder_0, deep, skip0)
        return enlarge(net.head(deep), x.shape[-2:])


def sparse_stem(stem: nn.Conv2d, x: Tensor, points: Tensor, channels: Tensor) -> Tensor:
    """Forms 1 and 2: the stem convolution of the dense input, from its non-zero channels.

    Args:
        x: (N, 4, H, W), image and prior mask.  points: (N, 2) int64, (x, y) pixels.
        channels: (N,) int64, the map channel of each point.

    Returns:
        (N, 64, h, w)
    """
    (kernel, _), (stride, _), (padding, _) = stem.kernel_size, stem.stride, stem.padding
    weight = stem.weight
    kept = torch.cat([weight[:, :IMAGE_CHANNELS], weight[:, -1:]], dim=1)
    out = F.conv2d(x, kept, stem.bias, stride=stride, padding=padding)
    count, width_out, height, width = out.shape
    most = (2 * RADIUS + kernel - 1) // stride + 1  # outputs in a row that see a Gaussian
    reach_w, reach_h = min(most, width), min(most, height)
    # The first output that sees each Gaussian, moved inward where the window would leave the map.
    limit = torch.tensor([width - reach_w, height - reach_h], device=x.device)
    first = -((RADIUS + padding - points) // stride)  # ceil((point - RADIUS - padding) / stride)
    first = torch.minimum(first.clamp(min=0), limit)  # (N, 2), x and y
    window = tuple(stride * (n - 1) + kernel for n in (reach_h, reach_w))
    gaussians = gaussian_windows(points, stride * first - padding, window, tuple(x.shape[-2:]))
    kernels = weight[:, IMAGE_CHANNELS + channels]  # (64, N, 7, 7)
    kernels = kernels.transpose(0, 1).reshape(count * width_out, 1, kernel, kernel)
    part = F.conv2d(gaussians[None].to(x.dtype), kernels, stride=stride, groups=count)
    rows = first[:, 1, None] + torch.arange(reach_h, device=x.device)
    columns = first[:, 0, None] + torch.arange(reach_w, device=x.device)
    index = (rows[:, :, None] * width + columns[:, None, :]).view(count, 1, -1)
    part = part.view(count, width_out, -1)
    out = out.flatten(2).scatter_add(2, index.expand_as(part), part)
    return out.view(count, width_out, height, width)


def convolve_then_enlarge(decoder: Decoder, x: Tensor, skip: Tensor) -> Tensor:
    """Form 3: `decoder(x, skip)`."""
    conv, norm, relu = decoder.conv[0]
    x = enlarge(F.conv2d(x, conv.weight[:, : x.shape[1]]), skip.shape[-2:])
    x = x + F.conv2d(skip, conv.weight[:, -skip.shape[1] :], conv.bias)
    return decoder.conv[1](relu(norm(x)))


def aspp_without_idle_taps(aspp: ASPP, x: Tensor) -> Tensor:
    """Form 4: `aspp(x)`."""
    features = [aspp.convs[0](x).expand(-1, -1, *x.shape[-2:])]
    for conv, norm, relu in aspp.convs[1:]:
        if conv.kernel_size == (3, 3) and conv.dilation[0] >= max(x.shape[-2:]):
            convolved = F.conv2d(x, conv.weight[:, :, 1:2, 1:2], conv.bias)
        else:
            convolved = conv(x)
        features.append(relu(norm(convolved)))
    return aspp.project(torch.cat(features, dim=1))


def fold_batch_norms(model: nn.Module) -> nn.Module:
    """Form 5, in place: merge each convolution of a model in evaluation mode with its batch norm.

    The model can no longer be trained.
    """
    for module in list(model.modules()):
        if isinstance(module, nn.Sequential):
            names = list(module._modules)
            pairs = list(zip(names, names[1:], strict=False))
        elif isinstance(module, (BasicBlock, Bottleneck)):
            pairs = [(f"conv{i}", f"bn{i}") for i in (1, 2, 3) if hasattr(module, f"conv{i}")]
        else:
            continue
        for conv_name, norm_name in pairs:
            conv, norm = getattr(module, conv_name), getattr(module, norm_name)
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, conv_name, fuse_conv_bn_eval(conv, norm))
                setattr(module, norm_name, nn.Identity())
    return model
