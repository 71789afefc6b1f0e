"""Paste box-relative masks into images: sub-pixel exact, and by the older integer convention."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from detectron2.structures.pasting import paste_masks_in_image

__all__ = ["pad_masks", "paste_mask_in_image_old", "paste_masks_in_image", "scale_boxes"]


def paste_mask_in_image_old(
    mask: Tensor, box: Tensor, img_h: int, img_w: int, threshold: float
) -> Tensor:
    """Paste one mask with corners rounded down to whole pixels, both ends within the box.

    `paste_masks_in_image` is more precise; this is here to compare with figures of older models.

    Args:
        mask: (M, M), values in [0, 1].
        box: (4,) x0, y0, x1, y1 in pixels of the image.
        threshold: makes the mask bool (`value > threshold`); if negative, values are kept.

    Returns:
        (img_h, img_w) uint8: 0 or 1, or value * 255 if `threshold` is negative.
    """
    x0, y0, x1, y1 = box.to(torch.int32).tolist()
    size = (max(x1 - x0 + 1, 1), max(y1 - y0 + 1, 1))
    resized = np.asarray(
        Image.fromarray(mask.cpu().float().numpy()).resize(size, resample=Image.Resampling.BILINEAR)
    )
    values = (resized > threshold) if threshold >= 0 else resized * 255
    values = torch.from_numpy(values.astype(np.uint8))

    image_mask = torch.zeros(img_h, img_w, dtype=torch.uint8)
    left, top = max(x0, 0), max(y0, 0)
    right, bottom = min(x0 + size[0], img_w), min(y0 + size[1], img_h)
    if left < right and top < bottom:
        image_mask[top:bottom, left:right] = values[top - y0 : bottom - y0, left - x0 : right - x0]
    return image_mask


def pad_masks(masks: Tensor, padding: int) -> tuple[Tensor, float]:
    """Add a border of zeros, so that a mask fades out at its edges when it is resized.

    Args:
        masks: (N, M, M).
        padding: width of the border in mask pixels.

    Returns:
        (N, M + 2 * padding, M + 2 * padding) and the factor by which the sides grew.
    """
    side = masks.shape[-1]
    padded = masks.new_zeros(len(masks), side + 2 * padding, side + 2 * padding)
    padded[:, padding : padding + side, padding : padding + side] = masks
    return padded, (side + 2 * padding) / side


def scale_boxes(boxes: Tensor, scale: float) -> Tensor:
    """(N, 4) boxes (x0, y0, x1, y1), `scale` times as large about their centers."""
    center = (boxes[:, :2] + boxes[:, 2:]) / 2
    half_size = (boxes[:, 2:] - boxes[:, :2]) / 2 * scale
    return torch.cat([center - half_size, center + half_size], dim=1)
