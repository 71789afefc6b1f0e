"""Non-maximum suppression of boxes."""

from torch import Tensor
from torchvision import ops
from torchvision.ops import nms

__all__ = ["batched_nms", "nms"]


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """(K,) int64 indices of the boxes that survive NMS within their own group, best score first.

    Args:
        boxes: (N, 4), x0, y0, x1, y1.  scores: (N,).
        idxs: (N,) group of each box, such as its class.
        iou_threshold: a box of the same group with a higher score and more overlap removes a box.
    """
    if boxes.shape[-1] != 4:
        raise ValueError(f"boxes must have shape (N, 4), got {tuple(boxes.shape)}")
    # float32: offsets separate the groups, and half precision cannot represent them.
    return ops.batched_nms(boxes.float(), scores, idxs, iou_threshold)
