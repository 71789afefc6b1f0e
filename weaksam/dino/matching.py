"""Match predictions to labels one to one, with the least cost in all (Hungarian method)."""

from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou

from weaksam.dino.positions import cxcywh_to_xyxy

__all__ = ["MatchCosts", "Matches", "Targets", "match"]


@dataclass(frozen=True)
class Targets:
    """Labels of one image. classes: (N,) int64. boxes: (N, 4) center and size in [0, 1]."""

    classes: Tensor
    boxes: Tensor

    def __len__(self) -> int:
        return len(self.classes)


@dataclass(frozen=True)
class Matches:
    """M pairs of queries and labels for each layer; each (layers, M) int64, or (1, M) for all.

    image: index in the batch.  query: of that image.  label: of that image.
    """

    image: Tensor
    query: Tensor
    label: Tensor


@dataclass(frozen=True)
class MatchCosts:
    """Weights of the parts of the cost, and the focal loss behind the first."""

    classes: float = 2.0
    l1: float = 5.0
    giou: float = 2.0
    alpha: float = 0.25
    gamma: float = 2.0


@torch.no_grad()
def match(logits: Tensor, boxes: Tensor, targets: list[Targets], costs: MatchCosts) -> Matches:
    """The best pairs of every layer by itself.

    Args:
        logits: (layers, B, Q, classes).
        boxes: (layers, B, Q, 4), center and size in [0, 1].
        targets: of each image.
    """
    layers: list[list[tuple[int, int, int]]] = [[] for _ in logits]
    for i, own in enumerate(targets):
        if not len(own):
            continue
        table = cost_table(logits[:, i], boxes[:, i], own, costs).cpu().numpy()
        for layer, costs_of_layer in zip(layers, table, strict=True):
            rows, columns = linear_sum_assignment(costs_of_layer)
            layer += zip([i] * len(rows), rows.tolist(), columns.tolist(), strict=True)
    table = torch.tensor(layers, dtype=torch.int64, device=logits.device)
    return Matches(*table.reshape(len(layers), -1, 3).unbind(-1))


def cost_table(logits: Tensor, boxes: Tensor, targets: Targets, costs: MatchCosts) -> Tensor:
    """Cost of each pair in one image: (layers, Q, classes), (layers, Q, 4) -> (layers, Q, N)."""
    logits, boxes = logits.float(), boxes.float()
    chosen = logits[..., targets.classes]  # (layers, Q, N)
    probability = chosen.sigmoid()
    as_positive = costs.alpha * (1 - probability) ** costs.gamma * F.softplus(-chosen)
    as_negative = (1 - costs.alpha) * probability**costs.gamma * F.softplus(chosen)
    flat = boxes.flatten(0, 1)
    overlap = generalized_box_iou(cxcywh_to_xyxy(flat), cxcywh_to_xyxy(targets.boxes))
    cost = (
        costs.classes * (as_positive - as_negative)
        + costs.l1 * torch.cdist(boxes, targets.boxes.expand(len(boxes), -1, -1), p=1)
        - costs.giou * overlap.view_as(chosen)
    )
    # Two boxes without area have no GIoU. They are matched last.
    return torch.nan_to_num(cost, nan=torch.finfo(cost.dtype).max)
