"""The training loss of MaskRefineNet."""

import torch
from torch import Tensor
from torch.nn import functional as F

EPSILON = 1e-7


def dice_loss(logits: Tensor, target: Tensor, *, per_column: bool = False) -> Tensor:
    """1 minus the mean of the classes' Dice coefficients, each taken over the whole batch.

    Args:
        logits: (N, K, H, W) float.
        target: (N, H, W) integer class of each pixel, in [0, K).
        per_column: sum over batch and rows only and average over classes and image columns, as the
            reference implementation does where its description says "batch and pixels".

    Returns:
        A scalar in [0, 1].
    """
    # float32 throughout: under autocast, sums over a batch of pixels overflow half precision.
    probabilities = logits.float().softmax(dim=1)
    classes = F.one_hot(target.long(), logits.shape[1]).permute(0, 3, 1, 2).to(torch.float32)
    axes = (0, 2) if per_column else (0, 2, 3)
    overlap = (probabilities * classes).sum(axes)
    total = (probabilities + classes).sum(axes)
    return 1 - (2 * overlap / (total + EPSILON)).mean()
