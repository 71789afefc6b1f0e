"""Box regression losses of pairs of (..., 4) boxes (x0, y0, x1, y1), predicted and true."""

from torch import Tensor
from torchvision import ops

EPSILON = 1e-7


def diou_loss(
    boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = EPSILON
) -> Tensor:
    """Distance-IoU loss: 1 - IoU + (center distance / diagonal of the enclosing box)^2.

    Args:
        reduction: "none" for one value per pair, "mean" (0 for no pair) or "sum".
        eps: keeps denominators above 0.
    """
    return ops.distance_box_iou_loss(boxes1, boxes2, reduction=reduction, eps=eps)


def ciou_loss(
    boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = EPSILON
) -> Tensor:
    """Complete-IoU loss: `diou_loss` and a term for the difference of aspect ratios.

    Args:
        reduction: "none" for one value per pair, "mean" (0 for no pair) or "sum".
        eps: keeps denominators above 0.
    """
    return ops.complete_box_iou_loss(boxes1, boxes2, reduction=reduction, eps=eps)
