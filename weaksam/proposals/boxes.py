"""Boxes of masks, and suppression of boxes without scores. Boxes are half-open x0, y0, x1, y1."""

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import nms


def mask_boxes(masks: Tensor) -> Tensor:
    """Tight boxes (..., 4) int64 of masks (..., H, W) bool; 0, 0, 0, 0 of an empty one."""
    height, width = masks.shape[-2:]
    bytes_of = masks.view(torch.uint8)  # whose maximum is faster than `any` of truth values
    rows, columns = bytes_of.amax(-1), bytes_of.amax(-2)
    x0, y0 = columns.argmax(-1), rows.argmax(-1)
    x1 = width - columns.flip(-1).argmax(-1)
    y1 = height - rows.flip(-1).argmax(-1)
    return torch.stack([x0, y0, x1, y1], dim=-1) * rows.amax(-1, keepdim=True)


def ordered_nms(boxes: np.ndarray, threshold: float) -> np.ndarray:
    """Rows to keep where an earlier box drops each later one of an IoU above `threshold`.

    The usual greedy suppression with ranks for scores, in double precision, so that boxes of whole
    pixels whose IoU is exactly the threshold stay. On half-open boxes this is what the reference
    does on boxes of the last pixel's index, whose sides count one more.
    """
    boxes = torch.from_numpy(np.asarray(boxes, np.float64).reshape(-1, 4))
    ranks = torch.arange(len(boxes), 0, -1, dtype=torch.float64)
    return nms(boxes, ranks, threshold).numpy()
