"""Non-maximum suppression of boxes."""

from torch import Tensor
from torchvision import ops
from torchvision.ops import nms

__all__ = ["batched_nms", "nms"]


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """Non-maximum suppression among the boxes of each group by itself.

    Args:
        boxes: (N, 4), (x0, y0, x1, y1).
        scores: (N,).
        idxs: (N,) group of each box, such as its class.
        iou_threshold: a box goes if one of higher score and the same group overlaps it by more.

    Returns:
        (K,) int64 indices of the kept boxes, best score first.
    """
    if boxes.shape[-1] != 4:
        raise ValueError(f"boxes must have shape (N, 4), got {tuple(boxes.shape)}")
    # float32: groups are kept apart by offsets that half precision cannot hold.
    return ops.batched_nms(boxes.float(), scores, idxs, iou_threshold)
