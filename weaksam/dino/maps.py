"""From the backbone's maps to the sequence that the transformer reads."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from weaksam.dino.attention import FlatMaps
from weaksam.dino.positions import map_encoding

__all__ = ["ChannelMapper", "flatten_maps", "padding_mask"]

NORM_GROUPS = 32


class ConvNorm(nn.Module):
    """Convolution without bias and group normalization."""

    def __init__(self, in_channels: int, channels: int, kernel_size: int, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, channels, kernel_size, stride, padding=kernel_size // 2, bias=False
        )
        self.gn = nn.GroupNorm(NORM_GROUPS, channels)
        nn.init.xavier_uniform_(self.conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.gn(self.conv(x))


class ChannelMapper(nn.Module):
    """Bring maps to one number of channels, and make smaller ones from the last by strides of 2."""

    def __init__(self, in_channels: list[int], channels: int, num_levels: int):
        super().__init__()
        extra = num_levels - len(in_channels)
        if extra < 0 or channels % NORM_GROUPS:
            raise ValueError(
                f"MODEL.DINO.NUM_LEVELS={num_levels} and HIDDEN_DIM={channels}: expected at least "
                f"{len(in_channels)} levels, as many as MODEL.DINO.IN_FEATURES, and a multiple of "
                f"{NORM_GROUPS} channels"
            )
        self.convs = nn.ModuleList(ConvNorm(c, channels, 1) for c in in_channels)
        self.extra_convs = nn.ModuleList(
            ConvNorm(in_channels[-1] if i == 0 else channels, channels, 3, 2) for i in range(extra)
        )

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Maps (B, in_channels, H, W) of falling size -> (B, channels, H, W) for each level."""
        maps = [conv(x) for conv, x in zip(self.convs, features, strict=True)]
        last = features[-1]
        for conv in self.extra_convs:
            last = conv(last)
            maps.append(last)
        return maps


def padding_mask(image_sizes: list[tuple[int, int]], images: Tensor) -> Tensor:
    """(B, H, W) bool, True where the batch (B, C, H, W) holds padding."""
    mask = torch.ones(len(images), *images.shape[-2:], dtype=torch.bool, device=images.device)
    for own, (height, width) in zip(mask, image_sizes, strict=True):
        own[:height, :width] = False
    return mask


def flatten_maps(
    maps: list[Tensor], is_padding: Tensor, level_embed: Tensor, temperature: float
) -> FlatMaps:
    """Put the maps one after the other.

    Args:
        maps: (B, C, H, W) of each level.
        is_padding: (B, H, W) of the images.
        level_embed: (levels, C), which is added to the positions of each level.
        temperature: of the positions' encoding.
    """
    positions, masks, ratios = [], [], []
    for level, x in enumerate(maps):
        mask = F.interpolate(is_padding[:, None].float(), size=x.shape[-2:])[:, 0] > 0
        encoded = map_encoding(mask, x.shape[1] // 2, temperature)  # (B, H, W, C)
        positions.append((encoded + level_embed[level]).flatten(1, 2))
        masks.append(mask.flatten(1))
        # Like the reference, by the first row and the first column.
        inside = ~mask
        ratios.append(
            torch.stack([inside[:, 0].float().mean(1), inside[:, :, 0].float().mean(1)], dim=-1)
        )
    return FlatMaps(
        values=torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1),
        positions=torch.cat(positions, dim=1),
        is_padding=torch.cat(masks, dim=1),
        sizes_hw=[tuple(x.shape[-2:]) for x in maps],
        valid_ratios=torch.stack(ratios, dim=1),
    )
