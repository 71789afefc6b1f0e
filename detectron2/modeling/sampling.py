"""Draw foreground and background to train on from many labeled predictions."""

import torch
from torch import Tensor

from detectron2.layers import nonzero_tuple

IGNORED = -1


def subsample_labels(
    labels: Tensor, num_samples: int, positive_fraction: float, bg_label: int
) -> tuple[Tensor, Tensor]:
    """Indices of randomly drawn positives and negatives.

    Args:
        labels: (N,) -1 for ignored, `bg_label` for background, any other value for foreground.
        num_samples: number to draw; fewer if there are not enough.
        positive_fraction: largest part of `num_samples` that may be positive. Negatives fill what
            positives leave.

    Returns:
        int64 indices (P,) of positives and (Q,) of negatives, in random order.
    """
    is_background = labels == bg_label
    quota = int(num_samples * positive_fraction)
    positive = _draw((labels != IGNORED) & ~is_background, quota)
    return positive, _draw(is_background, num_samples - len(positive))


def _draw(candidates: Tensor, limit: int) -> Tensor:
    """At most `limit` indices of true elements, in random order."""
    (index,) = nonzero_tuple(candidates)
    return index[torch.randperm(len(index), device=index.device)[:limit]]
