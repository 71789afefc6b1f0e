"""Losses of SOLOv2: Dice on the masks of positive cells, focal on the classes of all cells."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from detectron2.utils import comm

from .targets import ImageTargets

DICE_EPSILON = 0.001  # added to each of the two sums of squares


def dice_losses(probabilities: Tensor, masks: Tensor, instances: Tensor) -> Tensor:
    """1 - 2 sum(p t) / (sum(p^2) + sum(t^2) + 0.002) of each prediction with its instance's mask.

    Args:
        probabilities: (P, HW).  masks: (N, HW) 0 or 1, one row an instance.
        instances: (P,) int64, the row of `masks` that is each prediction's target.

    Returns:
        (P,)
    """
    masks = masks.to(probabilities.dtype)
    # All P x N products at once: cheaper than a copy of the mask for each cell.
    products = (probabilities @ masks.T).gather(1, instances[:, None])[:, 0]
    squares = torch.einsum("pn,pn->p", probabilities, probabilities) + DICE_EPSILON
    areas = masks.sum(dim=1)[instances] + DICE_EPSILON  # t^2 is t
    return 1 - 2 * products / (squares + areas)


def mask_loss(kernels: Tensor, features: Tensor, targets: Sequence[ImageTargets]) -> Tensor:
    """Mean Dice loss of all positives of the batch, over all processes; a scalar.

    A batch without positives gives a zero that is connected to kernels and features.

    Args:
        kernels: (B, sum of S * S, K).  features: (B, K, Hf, Wf).
    """
    total = 0.0 * (kernels.sum() + features.sum())
    count = 0
    for image_kernels, feature, target in zip(kernels, features, targets, strict=True):
        masks = target.masks.flatten(1)
        # An instance too small to keep a pixel at stride 4 has a class target, but no mask loss.
        visible = masks.bool().any(dim=1)[target.instances]
        cells, instances = target.cells[visible], target.instances[visible]
        if len(cells) == 0:
            continue
        count += len(cells)
        logits = image_kernels[cells] @ feature.flatten(1)  # (P, HW)
        total = total + dice_losses(logits.sigmoid(), masks, instances).sum()
    return total / mean_over_processes(count, kernels.device, minimum=1)


def category_loss(
    logits: Tensor, targets: Sequence[ImageTargets], *, alpha: float, gamma: float
) -> Tensor:
    """Focal loss of all cells over (positive cells + 1), counted over all processes; a scalar.

    Args:
        logits: (B, sum of S * S, C).
    """
    num_classes = logits.shape[-1]
    classes = torch.stack([target.classes for target in targets])
    wanted = F.one_hot(classes, num_classes + 1)[..., :num_classes].to(logits.dtype)
    total = sigmoid_focal_loss(logits, wanted, alpha=alpha, gamma=gamma, reduction="sum")
    positives = int((classes < num_classes).sum())
    return total / mean_over_processes(positives, logits.device, add=1)


def mean_over_processes(
    count: int, device: torch.device, *, add: int = 0, minimum: int = 0
) -> float:
    """max(sum of `count` + add, minimum) / number of processes.

    Gradients are averaged over processes; with this normalizer the average equals what one
    process would compute from all images.
    """
    processes = comm.get_world_size()
    if processes > 1:
        counts = torch.tensor(count, dtype=torch.float64, device=device)
        torch.distributed.all_reduce(counts)
        count = int(counts)
    return max(count + add, minimum) / processes
