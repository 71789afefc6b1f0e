"""The branches that turn queries into classes and boxes."""

import math

import torch
from torch import Tensor, nn

from weaksam.dino.positions import inverse_sigmoid

__all__ = ["BoxHead", "box_branch"]

PRIOR_PROB = 0.01  # of every class at the start, for focal loss
START_EPS = 1e-5  # of the inverse sigmoid of the boxes that predictions start from


class BoxHead(nn.Module):
    """One pair of branches for each decoder layer, and a last one for the encoder's places."""

    def __init__(self, dim: int, num_classes: int, num_layers: int):
        super().__init__()
        self.cls_branches = nn.ModuleList(
            nn.Linear(dim, num_classes) for _ in range(num_layers + 1)
        )
        self.reg_branches = nn.ModuleList(box_branch(dim) for _ in range(num_layers + 1))
        for branch in self.cls_branches:
            nn.init.constant_(branch.bias, -math.log((1 - PRIOR_PROB) / PRIOR_PROB))

    def forward(self, queries: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        """Predictions of every decoder layer.

        Args:
            queries: (layers, B, Q, C).
            starts: (layers, B, Q, 4), boxes that each layer started from, in [0, 1].

        Returns:
            (layers, B, Q, classes) logits; (layers, B, Q, 4) boxes in [0, 1], center and size.
        """
        logits, boxes = [], []
        for i, (own, start) in enumerate(zip(queries, starts, strict=True)):
            logits.append(self.cls_branches[i](own))
            correction = self.reg_branches[i](own)
            boxes.append((correction + inverse_sigmoid(start, START_EPS)).sigmoid())
        return torch.stack(logits), torch.stack(boxes)


def box_branch(dim: int) -> nn.Sequential:
    """Three linear layers; the last is 0 at the start, so that boxes stay where they are."""
    branch = nn.Sequential(
        nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, 4)
    )
    nn.init.zeros_(branch[-1].weight)
    nn.init.zeros_(branch[-1].bias)
    return branch
