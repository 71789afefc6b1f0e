"""A promptable network small enough for a CPU: one encoding an image, then cheap prompts.

The encoder is a residual network with a feature pyramid. A prompt reads features where it points; a
small U-Net compares the image's features with them and draws the masks.

Coordinates here are pixels of the network's input, where pixel centers are at whole numbers.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STRIDE = 4  # of the mask logits
PAD_TO = 32  # input sides are multiples of this
MASKS = 3  # region, object, group: finest first
PIXEL_MEAN, PIXEL_STD = 127.5, 64.0
GROUPS = 4  # of GroupNorm: batches of few scenes give BatchNorm poor statistics
FAR = 1e6  # stands for the distance to a click that is not there


@dataclass(frozen=True)
class Prompts:
    """G prompts, each of clicks or of a box.

    clicks: (G, K, 2) float x, y; the middle of the box for a box.  valid: (G, K) bool.
    boxes: (G, 4) float x0, y0, x1, y1; NaN where the prompt is of clicks.
    images: (G,) int64, which image of the batch.
    """

    clicks: Tensor
    valid: Tensor
    boxes: Tensor
    images: Tensor


@dataclass(frozen=True)
class Features:
    """pixels: (B, C, H/4, W/4) for the masks.  context: (B, D, H/4, W/4) that prompts read."""

    pixels: Tensor
    context: Tensor


class TinyNetwork(nn.Module):
    """Encode images, then draw three masks a prompt with a predicted IoU each."""

    def __init__(self, *, widths: tuple[int, ...] = (20, 32, 56, 88, 112), channels: int = 40):
        super().__init__()
        self.stem = _block(3, widths[0], stride=2)
        self.stages = nn.ModuleList(
            nn.Sequential(_block(a, b, stride=2), _Residual(b))
            for a, b in zip(widths[:-1], widths[1:], strict=True)
        )
        self.lateral = nn.ModuleList(nn.Conv2d(w, channels, 1) for w in widths[1:])
        self.merge = nn.ModuleList(_block(channels, channels) for _ in widths[2:])
        self.pixels = nn.Conv2d(channels, channels, 1)
        self.context = nn.Conv2d(channels * 2, channels * 2, 1)
        self.draw = PromptedMasks(pixels=channels, context=channels * 2)

    def encode(self, images: Tensor) -> Features:
        """Features of (B, 3, H, W) RGB images of 0 to 255; H and W are multiples of PAD_TO."""
        x = self.stem((images - PIXEL_MEAN) / PIXEL_STD)
        levels = []
        for stage, lateral in zip(self.stages, self.lateral, strict=True):
            x = stage(x)
            levels.append(lateral(x))
        merged = [levels[-1]]
        for level, merge in zip(reversed(levels[:-1]), self.merge, strict=True):
            merged.append(merge(level + _upsample(merged[-1], level)))
        fine = merged[-1]
        wide = torch.cat([fine, _upsample(merged[1], fine)], dim=1)  # stride 4, and 16 seen at 4
        return Features(self.pixels(fine), self.context(wide))

    def forward(self, features: Features, prompts: Prompts) -> tuple[Tensor, Tensor]:
        """Mask logits (G, 3, H/4, W/4) and predicted IoUs (G, 3) in 0 to 1."""
        return self.draw(features, prompts)


class PromptedMasks(nn.Module):
    """Masks of prompts on encoded images.

    What a prompt adds to the image's features is small: how far each pixel's key is from the keys
    at the prompt, where the pixel is from it, and a bias. A small U-Net makes masks of that.
    """

    MAPS = 6  # what `prompt_maps` gives a pixel
    KEYS, CODE = 16, 64

    def __init__(self, *, pixels: int, context: int, widths: tuple[int, ...] = (24, 40, 56)):
        super().__init__()
        self.keys = nn.Conv2d(context, self.KEYS, 1)
        self.base = nn.Conv2d(pixels, widths[0], 1)
        self.code = nn.Sequential(
            nn.Linear(2 * context + 3, self.CODE), nn.ReLU(), nn.Linear(self.CODE, self.CODE)
        )
        self.bias = nn.Linear(self.CODE, widths[0])
        self.enter = nn.Conv2d(self.KEYS + self.MAPS, widths[0], 1)
        self.down = nn.ModuleList(
            _block(x, y, stride=2) for x, y in zip(widths[:-1], widths[1:], strict=True)
        )
        self.deep = _block(widths[-1], widths[-1])
        self.up = nn.ModuleList(
            nn.Conv2d(x, y, 1) for x, y in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.merge = nn.ModuleList(_block(x, x) for x in widths[-2::-1])
        self.masks = nn.Conv2d(widths[0], MASKS, 1)
        seen = self.CODE + widths[-1] + MASKS * (widths[0] + 2)
        self.quality = nn.Sequential(nn.Linear(seen, 64), nn.ReLU(), nn.Linear(64, MASKS))

    def forward(self, features: Features, prompts: Prompts) -> tuple[Tensor, Tensor]:
        code = self.code(prompt_features(features.context, prompts))  # (G, CODE)
        keys, images = self.keys(features.context), prompts.images
        wanted = _sample(keys, prompts.clicks, images)  # (G, K, KEYS)
        weight = prompts.valid[..., None] / prompts.valid.sum(1)[:, None, None]
        wanted = (wanted * weight).sum(1)[..., None, None]
        apart = (_of_images(keys, images) - wanted).abs()
        maps = prompt_maps(prompts, keys.shape[-2:])
        # In place: for maps of this size, getting memory takes as long as adding.
        x = self.enter(torch.cat([apart, maps], dim=1))
        x += _of_images(self.base(features.pixels), images)
        x += self.bias(code)[..., None, None]
        x = F.relu_(x)
        levels = [x]
        for down in self.down:
            levels.append(down(levels[-1]))
        x = deepest = self.deep(levels.pop())
        for up, merge in zip(self.up, self.merge, strict=True):
            level = levels.pop()
            x = merge(_upsample(up(x), level).add_(level))
        logits = self.masks(x)
        return logits, self._predicted_iou(code, deepest, x, logits)

    def _predicted_iou(self, code: Tensor, deepest: Tensor, x: Tensor, logits: Tensor) -> Tensor:
        """How good each mask is, from its mean features, its area and how sure its pixels are."""
        share = torch.sigmoid(logits.detach()).flatten(2)  # (G, 3, P)
        area = share.sum(2, keepdim=True)
        inside = share @ x.detach().flatten(2).transpose(1, 2) / (area + 1)  # (G, 3, widths[0])
        sure = (share * share).sum(2, keepdim=True) / (area + 1)
        masks = torch.cat([inside, sure, torch.log1p(area)], dim=2).flatten(1)
        seen = torch.cat([code.detach(), deepest.detach().mean((2, 3)), masks], dim=1)
        return torch.sigmoid(self.quality(seen))


def _of_images(maps: Tensor, images: Tensor) -> Tensor:
    """The map (B, C, h, w) of each prompt's image; one image's serves all without a copy."""
    return maps if len(maps) == 1 else maps[images]


def prompt_features(context: Tensor, prompts: Prompts) -> Tensor:
    """What prompts point at: mean and maximum over their clicks, and their kind: (G, 2D + 3).

    A box reads a 3 x 3 grid of points in its inner half.
    """
    is_box = ~prompts.boxes[:, 0].isnan()
    points, valid = prompts.clicks, prompts.valid
    if is_box.any():
        steps = torch.linspace(-0.25, 0.25, 3, device=points.device)
        offsets = torch.cartesian_prod(steps, steps)  # (9, 2)
        corners = torch.nan_to_num(prompts.boxes)
        middle = (corners[:, :2] + corners[:, 2:]) / 2
        grid = middle[:, None] + offsets * (corners[:, 2:] - corners[:, :2])[:, None]
        points = torch.cat([points, grid], dim=1)
        valid = torch.cat([valid, is_box[:, None].expand(-1, len(offsets))], dim=1)
    sampled = _sample(context, points, prompts.images)  # (G, K, D)
    count = valid.sum(1, keepdim=True)
    mean = (sampled * valid[..., None]).sum(1) / count
    maximum = sampled.masked_fill(~valid[..., None], -torch.inf).amax(1)
    sides = torch.nan_to_num(prompts.boxes[:, 2:] - prompts.boxes[:, :2]).clamp(min=1).log() / 5
    kind = torch.cat([is_box[:, None], is_box[:, None] * sides], dim=1)
    return torch.cat([mean, maximum, kind.to(mean)], dim=1)


def prompt_maps(prompts: Prompts, size_hw: torch.Size) -> Tensor:
    """Where pixels are from the prompt: (G, 6, h, w).

    Offset in x and y from the nearest click, that distance twice, at two scales, how deep inside
    the box a pixel lies, and whether there is a box.
    """
    height, width = size_hw
    device = prompts.clicks.device
    x = (torch.arange(width, device=device) + 0.5) * STRIDE - 0.5
    y = (torch.arange(height, device=device) + 0.5) * STRIDE - 0.5
    dx = x.view(1, 1, 1, -1) - prompts.clicks[:, :, 0, None, None]  # (G, K, 1, w)
    dy = y.view(1, 1, -1, 1) - prompts.clicks[:, :, 1, None, None]  # (G, K, h, 1)
    squared = dx.square() + dy.square()
    squared = squared.masked_fill(~prompts.valid[..., None, None], FAR**2)
    squared, nearest = squared.min(dim=1, keepdim=True)  # (G, 1, h, w)
    offset_x = dx.expand(-1, -1, height, -1).gather(1, nearest)
    offset_y = dy.expand(-1, -1, -1, width).gather(1, nearest)
    x0, y0, x1, y1 = (edge[:, None, None, None] for edge in prompts.boxes.unbind(1))
    deep_x = torch.minimum(x - x0, x1 - x)
    deep_y = torch.minimum(y[:, None] - y0, y1 - y[:, None])
    depth = torch.minimum(deep_x, deep_y)  # (G, 1, h, w), NaN for clicks
    maps = [
        torch.tanh(offset_x / 64),
        torch.tanh(offset_y / 64),
        torch.exp(squared / -(2 * 8.0**2)),
        torch.exp(squared / -(2 * 40.0**2)),
        torch.nan_to_num(torch.tanh(depth / 8)),
        (~depth.isnan()).to(squared),
    ]
    return torch.cat(maps, dim=1)


def _sample(features: Tensor, points: Tensor, images: Tensor) -> Tensor:
    """Features (B, D, h, w) read bilinearly at points (G, K, 2) of their images: (G, K, D)."""
    height, width = features.shape[-2:]
    scale = points.new_tensor([width, height]) * STRIDE
    grid = (points + 0.5) * 2 / scale - 1
    if len(features) == 1:  # all prompts on one image: no copy of its features for each
        read = F.grid_sample(features, grid[None], padding_mode="border", align_corners=False)
        return read[0].permute(1, 2, 0)
    read = F.grid_sample(
        features[images], grid[:, :, None], padding_mode="border", align_corners=False
    )
    return read[..., 0].transpose(1, 2)


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.GroupNorm(GROUPS, outputs),
        nn.ReLU(inplace=True),
    )


class _Residual(nn.Module):
    """Two 3x3 convolutions beside the identity."""

    def __init__(self, channels: int):
        super().__init__()
        self.first = _block(channels, channels)
        self.second = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.GroupNorm(GROUPS, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(self.first(x)))


def _upsample(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)
