"""Paste the fixed-size masks that a mask head predicts into full images."""

import torch
from torch import Tensor
from torch.nn import functional as F

from .boxes import Boxes

# Pasting makes a few float maps of the image's size per mask; masks go in groups of this size.
MAX_PASTE_BYTES = 1 << 30
BYTES_PER_FLOAT = 4


def paste_masks_in_image(
    masks: Tensor, boxes: Boxes | Tensor, image_shape: tuple[int, int], threshold: float = 0.5
) -> Tensor:
    """Resize each mask to its box (bilinear, at pixel centers) in an otherwise empty image.

    Args:
        masks: (N, M, M), values in [0, 1].
        boxes: N boxes or an (N, 4) tensor, (x0, y0, x1, y1) in pixels of the image.
        image_shape: (height, width) of the image.
        threshold: makes masks bool (`value >= threshold`); if negative, values are kept instead.

    Returns:
        (N, height, width), bool; or uint8, value * 255, if `threshold` is negative.
    """
    if masks.shape[-1] != masks.shape[-2]:
        raise ValueError(f"only square masks can be pasted, got shape {tuple(masks.shape)}")
    boxes = boxes if isinstance(boxes, Tensor) else boxes.tensor
    if len(boxes) != len(masks):
        raise ValueError(f"need one box per mask, got {len(boxes)} boxes and {len(masks)} masks")
    height, width = image_shape
    dtype = torch.bool if threshold >= 0 else torch.uint8
    if not masks.is_floating_point():
        masks = masks.float()
    image_masks = torch.zeros(len(masks), height, width, dtype=dtype, device=masks.device)
    if image_masks.numel() == 0:
        return image_masks

    # On a CPU one mask at a time, within its own box, is fastest: most of the image is empty. A
    # GPU prefers few large kernels, as large as the memory allows.
    on_cpu = masks.device.type == "cpu"
    group = 1 if on_cpu else max(1, MAX_PASTE_BYTES // (height * width * BYTES_PER_FLOAT))
    for start in range(0, len(masks), group):
        group_boxes = boxes[start : start + group]
        window = [0, 0, width, height]
        if on_cpu:
            window = _window_around(group_boxes, masks.shape[-1], image_shape)
        values = _sample_masks(masks[start : start + group], group_boxes, window)
        values = values >= threshold if threshold >= 0 else (values * 255).to(torch.uint8)
        x0, y0, x1, y1 = window
        image_masks[start : start + group, y0:y1, x0:x1] = values
    return image_masks


def _window_around(boxes: Tensor, mask_side: int, size_hw: tuple[int, int]) -> list[int]:
    """x0, y0, x1, y1 of the part of the image where masks in the boxes can differ from 0."""
    # Outside of its box a mask fades to 0 over half a mask cell.
    fade = (boxes[:, 2:] - boxes[:, :2]) / (2 * mask_side)
    low = (boxes[:, :2] - fade).amin(dim=0).floor()
    high = (boxes[:, 2:] + fade).amax(dim=0).ceil()
    limit = low.new_tensor([size_hw[1], size_hw[0]])
    low, high = low.clamp(min=0).minimum(limit), high.clamp(min=0).minimum(limit)
    return torch.cat([low, high.maximum(low)]).int().tolist()


def _sample_masks(masks: Tensor, boxes: Tensor, window: list[int]) -> Tensor:
    """Values of (N, M, M) masks at the pixel centers of a window x0, y0, x1, y1: (N, h, w)."""
    x0, y0, x1, y1 = window
    x = torch.arange(x0, x1, device=masks.device, dtype=torch.float32) + 0.5
    y = torch.arange(y0, y1, device=masks.device, dtype=torch.float32) + 0.5
    left, top, right, bottom = boxes.float()[..., None].unbind(dim=1)  # each (N, 1)
    # grid_sample's frame: -1 and 1 are the mask's borders. A box without extent has no frame:
    # all its samples are then put outside of the mask, where values are 0.
    x = _outside_if_not_finite((x - left) / (right - left) * 2 - 1)
    y = _outside_if_not_finite((y - top) / (bottom - top) * 2 - 1)
    size = (len(masks), y.shape[1], x.shape[1])
    grid = torch.stack([x[:, None, :].expand(size), y[:, :, None].expand(size)], dim=3)
    return F.grid_sample(masks[:, None], grid.to(masks.dtype), align_corners=False)[:, 0]


def _outside_if_not_finite(coordinate: Tensor) -> Tensor:
    far_outside = -3.0  # beyond -1 by more than any mask's half pixel
    return torch.where(coordinate.isfinite(), coordinate, far_outside)
