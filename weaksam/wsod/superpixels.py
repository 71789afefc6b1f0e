"""How well boxes keep an image's superpixels whole: the low-level cue of WSOD2.

A superpixel that a box cuts counts with its smaller part, inside or outside the box. Boxes around
whole objects cut few (SPEC_WEAKSAM 4.3).
"""

import cv2
import numpy as np
import torch
from torch import Tensor

__all__ = ["superpixel_labels", "superpixel_wholeness"]

RULER = 10.0  # SLIC's weight of distance against color
SLIC_ITERATIONS = 10


def superpixel_labels(image: Tensor, region_size: int, stride: int = 1) -> Tensor:
    """(ceil(H / stride), ceil(W / stride)) int64 labels from 0, of every `stride`-th pixel.

    Args:
        image: (3, H, W) in 0 to 255.
        region_size: mean side of a superpixel, pixels.
    """
    pixels = image.detach().cpu().clamp(0, 255).byte().permute(1, 2, 0).contiguous().numpy()
    slic = cv2.ximgproc.createSuperpixelSLIC(
        pixels, algorithm=cv2.ximgproc.SLICO, region_size=region_size, ruler=RULER
    )
    slic.iterate(SLIC_ITERATIONS)
    labels = np.ascontiguousarray(slic.getLabels()[::stride, ::stride])
    _, dense = np.unique(labels, return_inverse=True)
    return torch.from_numpy(dense.reshape(labels.shape)).long()


def superpixel_wholeness(labels: Tensor, boxes: Tensor) -> Tensor:
    """(R,) 1 - the area of the smaller parts of cut superpixels / the box's area, clipped at 0.

    Args:
        labels: (H, W) int64 of an image, from 0.
        boxes: (R, 4) x0, y0, x1, y1 in pixels of `labels`; rounded outwards.
    """
    height, width = labels.shape
    count = int(labels.max()) + 1
    low = boxes[:, :2].floor().long().clamp(min=0)
    high = boxes[:, 2:].ceil().long()
    x0, y0 = low[:, 0].clamp(max=width - 1), low[:, 1].clamp(max=height - 1)
    x1, y1 = high[:, 0].clamp(max=width), high[:, 1].clamp(max=height)
    x1, y1 = torch.maximum(x1, x0 + 1), torch.maximum(y1, y0 + 1)
    one_hot = torch.nn.functional.one_hot(labels, count).permute(2, 0, 1).to(torch.int32)
    integral = one_hot.cumsum(1, dtype=torch.int32).cumsum(2, dtype=torch.int32)
    integral = torch.nn.functional.pad(integral, (1, 0, 1, 0))  # (S, H + 1, W + 1)
    inside = integral[:, y1, x1] - integral[:, y0, x1] - integral[:, y1, x0] + integral[:, y0, x0]
    outside = integral[:, -1, -1][:, None] - inside
    cut = torch.minimum(inside, outside).sum(dim=0)
    area = (x1 - x0) * (y1 - y0)
    return (1 - cut / area).clamp(min=0)
