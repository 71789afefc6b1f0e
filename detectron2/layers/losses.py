"""Box regression losses on pairs of (..., 4) boxes x0, y0, x1, y1, under Detectron2's names."""

from torchvision.ops import complete_box_iou_loss as ciou_loss
from torchvision.ops import distance_box_iou_loss as diou_loss

__all__ = ["ciou_loss", "diou_loss"]
