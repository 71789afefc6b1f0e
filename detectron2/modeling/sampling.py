"""Draw a training sample of foreground and background from many labelled predictions."""

import torch
from torch import Tensor

from detectron2.layers import nonzero_tuple

__all__ = ["subsample_labels"]

IGNORED = -1


def subsample_labels(
    labels: Tensor, num_samples: int, positive_fraction: float, bg_label: int
) -> tuple[Tensor, Tensor]:
    """Indices of randomly drawn positives and negatives.

    Args:
        labels: (N,) -1 for ignored, `bg_label` for background, any other value for foreground.
        num_samples: how many to draw in all, fewer if there are not enough.
        positive_fraction: the largest part of `num_samples` that may be positive; what positives
            leave, negatives fill.

    Returns:
        int64 indices (P,) of positives and (Q,) of negatives, in random order.
    """
    positive = nonzero_tuple((labels != IGNORED) & (labels != bg_label))[0]
    negative = nonzero_tuple(labels == bg_label)[0]
    num_positive = min(positive.numel(), int(num_samples * positive_fraction))
    num_negative = min(negative.numel(), num_samples - num_positive)
    chosen_positive = torch.randperm(positive.numel(), device=positive.device)[:num_positive]
    chosen_negative = torch.randperm(negative.numel(), device=negative.device)[:num_negative]
    return positive[chosen_positive], negative[chosen_negative]
