"""Boxes as deltas from other boxes, and losses of predicted deltas.

Boxes are (x0, y0, x1, y1) in pixels.
"""

import math

import torch
from fvcore.nn import giou_loss, smooth_l1_loss
from torch import Tensor

from detectron2.layers import ciou_loss, diou_loss

# Largest growth of a box: from 16 pixels to 1000.
DEFAULT_SCALE_CLAMP = math.log(1000.0 / 16)
IOU_LOSSES = {"giou": giou_loss, "diou": diou_loss, "ciou": ciou_loss}
BOX_REG_LOSS_TYPES = ("smooth_l1", *IOU_LOSSES)


class Box2BoxTransform:
    """R-CNN's deltas: shift of the center in box sizes, and logarithm of the growth."""

    def __init__(
        self,
        weights: tuple[float, float, float, float],
        scale_clamp: float = DEFAULT_SCALE_CLAMP,
    ):
        """
        Args:
            weights: factors of dx, dy, dw, dh, chosen for a variance of about 1.
            scale_clamp: upper bound of dw and dh before their factors.
        """
        self.weights = weights
        self.scale_clamp = scale_clamp

    def get_deltas(self, src_boxes: Tensor, target_boxes: Tensor) -> Tensor:
        """(N, 4) deltas dx, dy, dw, dh from `src_boxes` to `target_boxes`, both (N, 4)."""
        _check_pairs(src_boxes, target_boxes)
        src_centers, src_sizes = _centers_and_sizes(src_boxes)
        target_centers, target_sizes = _centers_and_sizes(target_boxes)
        if not (src_sizes > 0).all():
            raise ValueError(
                "source boxes must be wider and higher than 0 pixels; some are not (annotations "
                "with only a point have no box to learn from)"
            )
        shifts = (target_centers - src_centers) / src_sizes
        growths = torch.log(target_sizes / src_sizes)
        return torch.cat([shifts, growths], dim=1) * src_boxes.new_tensor(self.weights)

    def apply_deltas(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """Boxes moved by deltas.

        Args:
            deltas: (N, 4 * K), K alternatives for each box, such as one for each class.
            boxes: (N, 4).

        Returns:
            (N, 4 * K) in float32, or the type of `deltas` if that is wider.
        """
        deltas = _at_least_float32(deltas)  # half precision has too few digits for pixels
        centers, sizes = _centers_and_sizes(boxes.to(deltas.dtype))
        centers, sizes = centers[:, None], sizes[:, None]  # (N, 1, 2)
        # -1 for N and not for K, because N must stay variable in a trace.
        parts = deltas.reshape(-1, deltas.shape[1] // 4, 4) / deltas.new_tensor(self.weights)
        new_centers = parts[..., :2] * sizes + centers
        half_sizes = parts[..., 2:].clamp(max=self.scale_clamp).exp() * sizes / 2
        corners = torch.cat([new_centers - half_sizes, new_centers + half_sizes], dim=-1)
        return corners.reshape(deltas.shape)


def _centers_and_sizes(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """(N, 2) centers x, y and (N, 2) widths and heights of (N, 4) boxes."""
    sizes = boxes[:, 2:] - boxes[:, :2]
    return boxes[:, :2] + sizes / 2, sizes


def _check_pairs(src_boxes: Tensor, target_boxes: Tensor) -> None:
    if not (isinstance(src_boxes, Tensor) and isinstance(target_boxes, Tensor)):
        raise ValueError(
            "deltas are computed from two tensors (N, 4), got "
            f"{type(src_boxes).__name__} and {type(target_boxes).__name__}"
        )


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def box_regression_losses(
    deltas: Tensor,
    src_boxes: Tensor,
    target_boxes: Tensor,
    transform: Box2BoxTransform,
    loss_type: str = "smooth_l1",
    smooth_l1_beta: float = 0.0,
) -> Tensor:
    """(N,) losses of (N, 4) predicted deltas from source boxes to targets, both (N, 4).

    Args:
        loss_type: "smooth_l1" compares deltas and sums over the four; "giou", "diou" and "ciou"
            compare boxes.
        smooth_l1_beta: the difference at which smooth L1 turns linear; 0 makes it L1.
    """
    if loss_type == "smooth_l1":
        target_deltas = transform.get_deltas(src_boxes, target_boxes)
        losses = smooth_l1_loss(deltas, target_deltas, beta=smooth_l1_beta, reduction="none")
        return losses.sum(dim=1)
    if loss_type in IOU_LOSSES:
        boxes = transform.apply_deltas(deltas, src_boxes)
        return IOU_LOSSES[loss_type](boxes, target_boxes, reduction="none")
    raise ValueError(f"box regression loss {loss_type!r}; expected one of {BOX_REG_LOSS_TYPES}")
