"""Mixed query selection: the boxes of queries come from the encoder, their content is learned."""

from dataclasses import dataclass

import torch
from torch import Tensor

from weaksam.dino.attention import FlatMaps

__all__ = ["Selection", "place_boxes", "select_queries"]

BASE_SIZE = 0.05  # of a place's box on the first level, as a part of the image; doubles by level
BORDER = 0.01  # places whose box is nearer to 0 or 1 than this in any coordinate are not used


@dataclass(frozen=True)
class Selection:
    """The places that become queries, best first.

    logits: (B, Q, classes).  boxes: (B, Q, 4), center and size in [0, 1]. Predictions of the
        encoder's branches, with gradients.
    """

    logits: Tensor
    boxes: Tensor


def place_boxes(maps: FlatMaps) -> tuple[Tensor, Tensor]:
    """A box around each place, relative to the image.

    Returns:
        (B, S, 4) logits of center and size, infinity where not used; (B, S) bool, which are used.
    """
    boxes = []
    for level, (height, width) in enumerate(maps.sizes_hw):
        y = torch.arange(height, device=maps.values.device) + 0.5
        x = torch.arange(width, device=maps.values.device) + 0.5
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).flatten(0, 1)  # (HW, 2)
        scale = grid.new_tensor([width, height]) * maps.valid_ratios[:, level]  # cells of image
        centers = grid / scale[:, None]  # (B, HW, 2)
        sizes = torch.full_like(centers, BASE_SIZE * 2**level)
        boxes.append(torch.cat([centers, sizes], dim=-1))
    whole = torch.cat(boxes, dim=1)
    is_used = ((whole > BORDER) & (whole < 1 - BORDER)).all(dim=-1) & ~maps.is_padding
    logits = (whole / (1 - whole)).log()
    # Upstream parity: the box (1, 1, 1, 1) after the sigmoid
    return torch.where(is_used[..., None], logits, torch.inf), is_used


def select_queries(logits: Tensor, boxes: Tensor, num_queries: int) -> Selection:
    """The places with the highest score of any class; all of them in a very small image.

    Args:
        logits: (B, S, classes) of all places.
        boxes: (B, S, 4) in [0, 1].
    """
    count = min(num_queries, logits.shape[1])
    best = logits.amax(dim=-1).topk(count, dim=1).indices[..., None]
    return Selection(
        logits.gather(1, best.expand(-1, -1, logits.shape[-1])),
        boxes.gather(1, best.expand(-1, -1, 4)),
    )
