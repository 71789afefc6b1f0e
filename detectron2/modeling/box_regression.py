"""Boxes as deltas to other boxes, and the losses of predicted deltas.

Boxes are (x0, y0, x1, y1) in pixels.
"""

import math

import torch
from fvcore.nn import giou_loss, smooth_l1_loss
from torch import Tensor
from torch.nn import functional as F

from detectron2.layers import ciou_loss, diou_loss

__all__ = [
    "BOX_REG_LOSS_TYPES",
    "Box2BoxTransform",
    "Box2BoxTransformLinear",
    "box_regression_losses",
]

# A box may become at most so much larger than its source: for a source of 16 pixels, 1000 pixels.
DEFAULT_SCALE_CLAMP = math.log(1000.0 / 16)
IOU_LOSSES = {"giou": giou_loss, "diou": diou_loss, "ciou": ciou_loss}
BOX_REG_LOSS_TYPES = ("smooth_l1", *IOU_LOSSES)


class Box2BoxTransform:
    """The R-CNN parametrisation: shift of the center in box sizes, logarithm of the growth."""

    def __init__(
        self,
        weights: tuple[float, float, float, float],
        scale_clamp: float = DEFAULT_SCALE_CLAMP,
    ):
        """
        Args:
            weights: factors of dx, dy, dw, dh that give them a variance of about 1.
            scale_clamp: upper bound of dw and dh, without their factors.
        """
        self.weights = weights
        self.scale_clamp = scale_clamp

    def get_deltas(self, src_boxes: Tensor, target_boxes: Tensor) -> Tensor:
        """(N, 4) deltas dx, dy, dw, dh that lead from (N, 4) `src_boxes` to `target_boxes`."""
        _check_pairs(src_boxes, target_boxes)
        src_centers, src_sizes = _centers_and_sizes(src_boxes)
        target_centers, target_sizes = _centers_and_sizes(target_boxes)
        if not (src_sizes > 0).all():
            raise ValueError(
                "boxes to regress from must be wider and higher than 0 pixels; some are not "
                "(annotations with a point only have no box to learn from)"
            )
        shifts = (target_centers - src_centers) / src_sizes
        growths = torch.log(target_sizes / src_sizes)
        return torch.cat([shifts, growths], dim=1) * src_boxes.new_tensor(self.weights)

    def apply_deltas(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """Boxes that deltas lead to.

        Args:
            deltas: (N, 4 * K): for each box K alternatives, such as one a class.
            boxes: (N, 4).

        Returns:
            (N, 4 * K), float32 or the wider type of `deltas`.
        """
        deltas = _at_least_float32(deltas)  # half precision has too few digits for pixels
        centers, sizes = _centers_and_sizes(boxes.to(deltas.dtype))
        centers, sizes = centers[:, None], sizes[:, None]  # (N, 1, 2)
        # -1 for N, not K: in a trace N changes from image to image
        parts = deltas.reshape(-1, deltas.shape[1] // 4, 4) / deltas.new_tensor(self.weights)
        new_centers = parts[..., :2] * sizes + centers
        half_sizes = parts[..., 2:].clamp(max=self.scale_clamp).exp() * sizes / 2
        corners = torch.cat([new_centers - half_sizes, new_centers + half_sizes], dim=-1)
        return corners.reshape(deltas.shape)


class Box2BoxTransformLinear:
    """The FCOS parametrisation: distances from the source's center to the sides of the target."""

    def __init__(self, normalize_by_size: bool = True):
        """
        Args:
            normalize_by_size: measure distances in sizes of the source box, not in pixels.
        """
        self.normalize_by_size = normalize_by_size

    def get_deltas(self, src_boxes: Tensor, target_boxes: Tensor) -> Tensor:
        """(N, 4) distances to the left, top, right and bottom; negative where outside."""
        _check_pairs(src_boxes, target_boxes)
        centers, sizes = _centers_and_sizes(src_boxes)
        deltas = torch.cat([centers - target_boxes[:, :2], target_boxes[:, 2:] - centers], dim=1)
        return deltas / sizes.repeat(1, 2) if self.normalize_by_size else deltas

    def apply_deltas(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """(N, 4) boxes from (N, 4) distances (those below 0 count as 0) and (N, 4) boxes."""
        deltas = F.relu(deltas)
        centers, sizes = _centers_and_sizes(boxes.to(deltas.dtype))
        if self.normalize_by_size:
            deltas = deltas * sizes.repeat(1, 2)
        return torch.cat([centers - deltas[:, :2], centers + deltas[:, 2:]], dim=1)


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
    transform: Box2BoxTransform | Box2BoxTransformLinear,
    loss_type: str = "smooth_l1",
    smooth_l1_beta: float = 0.0,
) -> Tensor:
    """(N,) losses of (N, 4) predicted deltas of (N, 4) source boxes that should become the targets.

    Args:
        loss_type: "smooth_l1" compares deltas, summed over the four; "giou", "diou" and "ciou"
            compare boxes.
        smooth_l1_beta: where smooth-L1 turns from quadratic to linear; 0 makes it L1.
    """
    if loss_type == "smooth_l1":
        target_deltas = transform.get_deltas(src_boxes, target_boxes)
        losses = smooth_l1_loss(deltas, target_deltas, beta=smooth_l1_beta, reduction="none")
        return losses.sum(dim=1)
    if loss_type in IOU_LOSSES:
        boxes = transform.apply_deltas(deltas, src_boxes)
        return IOU_LOSSES[loss_type](boxes, target_boxes, reduction="none")
    raise ValueError(f"box regression loss {loss_type!r}; expected one of {BOX_REG_LOSS_TYPES}")
