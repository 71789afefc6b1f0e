"""The training loss of MaskRefineNet."""

import torch
from torch import Tensor
from torch.nn import functional as F

EPSILON = 1e-7


SUMMED_AXES = {"pixels": (0, 2, 3), "columns": (0, 2)}  # of (N, K, H, W), by reduction


def dice_loss(logits: Tensor, target: Tensor, reduction: str = "pixels") -> Tensor:
    """1 minus the mean of the classes' Dice coefficients, each taken over the whole batch.

    Args:
        logits: (N, K, H, W) float.
        target: (N, H, W) integer class of each pixel, in [0, K).
        reduction: "pixels" sums over batch and pixels, as the reference's description says;
            "columns" over batch and rows, and averages over classes and columns, as its code does.

    Returns:
        A scalar in [0, 1].
    """
    # float32 throughout: under autocast, sums over a batch of pixels overflow half precision.
    probabilities = logits.float().softmax(dim=1)
    classes = F.one_hot(target.long(), logits.shape[1]).permute(0, 3, 1, 2).to(torch.float32)
    axes = SUMMED_AXES[reduction]
    overlap = (probabilities * classes).sum(axes)
    total = (probabilities + classes).sum(axes)
    return 1 - (2 * overlap / (total + EPSILON)).mean()
