"""Draw labeled points as Gaussians, the form in which MaskRefineNet reads them.

Points are (x, y) pixels of the network's input; a Gaussian is cut off at `RADIUS` pixels, so that
it covers 39 x 39 of them with its peak of 1 on the point's pixel.
"""

import torch
from torch import Tensor

SIGMA = 6
RADIUS = 19  # the support is 6 * SIGMA + 3 = 2 * RADIUS + 1 = 39 pixels wide


def gaussian_profile(positions: Tensor, centers: Tensor, size: int) -> Tensor:
    """Values of 1-D Gaussians at pixel positions; zero outside support and outside the image.

    Args:
        positions: (N, L) int64 pixel coordinates on one axis, which may lie outside the image.
        centers: (N,) int64 pixel coordinate of each Gaussian; one outside the image draws nothing.
        size: length of the image on this axis.

    Returns:
        (N, L) float32. The 2-D Gaussian is the product of its two profiles.
    """
    offsets = positions - centers[:, None]
    inside = (positions >= 0) & (positions < size) & (offsets.abs() <= RADIUS)
    visible = (centers >= 0) & (centers < size)
    values = torch.exp(-(offsets.float() ** 2) / (2 * SIGMA**2))
    return torch.where(inside & visible[:, None], values, values.new_zeros(()))


def gaussian_windows(
    points: Tensor, starts: Tensor, window_hw: tuple[int, int], size_hw: tuple[int, int]
) -> Tensor:
    """Windows of the point maps, without the maps themselves.

    Args:
        points: (N, 2) int64, (x, y) pixels.
        starts: (N, 2) int64, (x, y) of each window's first pixel; may be negative.
        window_hw: height and width of the windows.
        size_hw: height and width of the image; pixels outside it are zero.

    Returns:
        (N, h, w) float32.
    """
    rows = starts[:, 1:] + torch.arange(window_hw[0], device=points.device)
    columns = starts[:, :1] + torch.arange(window_hw[1], device=points.device)
    vertical = gaussian_profile(rows, points[:, 1], size_hw[0])
    horizontal = gaussian_profile(columns, points[:, 0], size_hw[1])
    return vertical[:, :, None] * horizontal[:, None, :]


def class_point_map(
    points: Tensor, channels: Tensor, num_channels: int, size_hw: tuple[int, int]
) -> Tensor:
    """The dense class-point maps: all zero but for one Gaussian in one channel each.

    Args:
        points: (N, 2) int64, (x, y) pixels.
        channels: (N,) int64 in [0, num_channels): class index + 1, as channel 0 is no class's.
        num_channels: channels of the map, the number of classes + 1.
        size_hw: height and width of the map.

    Returns:
        (N, num_channels, H, W) float32.
    """
    maps = torch.zeros(len(points), num_channels, *size_hw, device=points.device)
    planes = gaussian_windows(points, torch.zeros_like(points), size_hw, size_hw)
    maps[torch.arange(len(points), device=points.device), channels] = planes
    return maps
