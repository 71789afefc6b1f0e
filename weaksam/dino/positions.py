"""Sine encodings of places and boxes, and the boxes' unbounded form. All coordinates: [0, 1]."""

import math

import torch
from torch import Tensor

__all__ = ["box_encoding", "cxcywh_to_xyxy", "inverse_sigmoid", "map_encoding", "xyxy_to_cxcywh"]

FULL_CIRCLE = 2 * math.pi
BOX_TEMPERATURE = 10_000  # of the queries' boxes, as in DAB-DETR


def sine_encoding(values: Tensor, channels: int, temperature: float) -> Tensor:
    """Sines (even channels) and cosines (odd ones) of angles, (...) -> (..., channels)."""
    pair = torch.arange(channels // 2, dtype=torch.float32, device=values.device)
    angles = values[..., None] / temperature ** (2 * pair / channels)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)


def box_encoding(boxes: Tensor, channels: int) -> Tensor:
    """Encode boxes for the decoder's queries.

    Args:
        boxes: (..., 4), center x, center y, width, height.
        channels: for each of the four.

    Returns:
        (..., 4 * channels) in the order y, x, width, height.
    """
    parts = sine_encoding(boxes * FULL_CIRCLE, channels, BOX_TEMPERATURE)  # (..., 4, channels)
    return parts[..., [1, 0, 2, 3], :].flatten(-2)


def map_encoding(is_padding: Tensor, channels: int, temperature: float) -> Tensor:
    """Encode the places of feature maps, relative to the image without its padding.

    Args:
        is_padding: (B, H, W) bool.
        channels: for y and for x.

    Returns:
        (B, H, W, 2 * channels): y, then x.
    """
    inside = (~is_padding).float()
    encoded = []
    for dim in (1, 2):
        place = inside.cumsum(dim)
        size = place.narrow(dim, place.shape[dim] - 1, 1)
        place = place / (size + 1e-6) * FULL_CIRCLE
        encoded.append(sine_encoding(place, channels, temperature))
    return torch.cat(encoded, dim=-1)


def inverse_sigmoid(x: Tensor, eps: float) -> Tensor:
    """log(x / (1 - x)) of numbers clamped to [0, 1]; both parts of the fraction are >= `eps`."""
    x = x.clamp(0, 1)
    return (x.clamp(min=eps) / (1 - x).clamp(min=eps)).log()


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """(..., 4): center x, center y, width, height -> x0, y0, x1, y1."""
    center, size = boxes.split(2, dim=-1)
    return torch.cat([center - size / 2, center + size / 2], dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """(..., 4): x0, y0, x1, y1 -> center x, center y, width, height."""
    low, high = boxes.split(2, dim=-1)
    return torch.cat([(low + high) / 2, high - low], dim=-1)
