"""Scores, boxes and losses of proposals that are supervised by their image's tags alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from fvcore.nn import smooth_l1_loss
from torch import Tensor, nn
from torch.nn import functional as F

from detectron2.modeling.box_regression import Box2BoxTransform
from weaksam.wsod.settings import MILSettings
from weaksam.wsod.targets import ProposalTargets, assign_proposals, find_seeds

__all__ = ["MILPredictions", "MILPredictor"]

# Upstream parity: sums of an image's scores are kept this far from 0 and 1 (SPEC_WEAKSAM 4.1).
MARGIN = 1e-8
BOX_BETA = 1.0  # where smooth-L1 becomes linear


@dataclass(frozen=True)
class MILPredictions:
    """Outputs for R proposals of all images together; C classes, then the background, if any.

    classification, detection: (R, C or C + 1) logits, compared over classes and over proposals.
    refinements: of each branch (R, C + 1) logits.
    deltas: of each box branch (R, 4 * C) or (R, 4).
    """

    classification: Tensor
    detection: Tensor
    refinements: tuple[Tensor, ...]
    deltas: tuple[Tensor, ...]

    def split(self, counts: Sequence[int]) -> list["MILPredictions"]:
        """Those of each image."""
        columns = (self.classification, self.detection, *self.refinements, *self.deltas)
        number = len(self.refinements)
        return [
            MILPredictions(own[0], own[1], own[2 : 2 + number], own[2 + number :])
            for own in zip(*(column.split(list(counts)) for column in columns), strict=True)
        ]


class MILPredictor(nn.Module):
    """Linear layers on a proposal's features: two multiple-instance scores, then refinements.

    Released detectors of the reference name the layers `cls`, `det`, `ref1`, ..., `bbox1`, ....
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        settings: MILSettings,
        box_transform: Box2BoxTransform,
    ):
        super().__init__()
        self.num_classes, self.settings, self.box_transform = num_classes, settings, box_transform
        mil_outputs = num_classes + settings.mil_background
        branches = range(1, settings.num_refine + 1)
        self.cls = nn.Linear(in_features, mil_outputs)
        self.det = nn.Linear(in_features, mil_outputs)
        for i in branches:
            self.add_module(f"ref{i}", nn.Linear(in_features, num_classes + 1))
        self.box_names = {
            "none": [],
            "class": [f"bbox{i}" for i in branches],
            "agnostic": ["bbox"],
        }[settings.box_regression]
        box_outputs = 4 if settings.box_regression == "agnostic" else 4 * num_classes
        for name in self.box_names:
            self.add_module(name, nn.Linear(in_features, box_outputs))
        for layer in self.children():
            nn.init.normal_(layer.weight, std=settings.weight_std)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> MILPredictions:
        """(R, in_features) -> predictions of all R proposals."""
        refinements = (getattr(self, f"ref{i + 1}") for i in range(self.settings.num_refine))
        return MILPredictions(
            self.cls(features),
            self.det(features),
            tuple(layer(features) for layer in refinements),
            tuple(getattr(self, name)(features) for name in self.box_names),
        )

    def instance_scores(self, predictions: MILPredictions) -> Tensor:
        """(R, C or C + 1) scores of an image's proposals; a class's sum is the image's score."""
        over_classes = predictions.classification.softmax(dim=1)
        return over_classes * predictions.detection.softmax(dim=0)

    def losses(
        self,
        predictions: MILPredictions,
        boxes: Tensor,
        tags: Tensor,
        foreground_weights: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Losses of one image.

        Args:
            predictions: of its R proposals.
            boxes: (R, 4), x0, y0, x1, y1 in pixels of the network's input.
            tags: (T,) int64 class indices, ascending, T > 0.
            foreground_weights: (R,) in place of a seed's score where a proposal has a class.
        """
        scores = self.instance_scores(predictions)
        losses = {"loss_image": self._image_loss(scores, tags)}
        source = scores.detach()
        boxed = self.settings.box_regression
        for i, logits in enumerate(predictions.refinements, start=1):
            seeds = find_seeds(boxes, source, tags, self.settings.seeds)
            targets = assign_proposals(boxes, seeds, self.num_classes, self.settings.seeds)
            if foreground_weights is not None:
                is_foreground = targets.classes < self.num_classes
                weights = torch.where(is_foreground, foreground_weights, targets.weights)
                targets = ProposalTargets(targets.classes, weights, targets.seeds)
            weight = self.settings.loss_weights[i - 1]
            losses[f"loss_refine{i}"] = weight * self._refinement_loss(logits, targets)
            if boxed == "class":
                deltas = predictions.deltas[i - 1]
                losses[f"loss_box{i}"] = weight * self._box_loss(deltas, boxes, targets)
            elif boxed == "agnostic" and i == self.settings.num_refine:
                losses["loss_box"] = self._box_loss(predictions.deltas[0], boxes, targets)
            source = logits.detach().softmax(dim=1)
        return losses

    def _image_loss(self, scores: Tensor, tags: Tensor) -> Tensor:
        target = scores.new_zeros(scores.shape[1])
        target[tags] = 1.0
        image_scores = scores.float().sum(dim=0).clamp(MARGIN, 1 - MARGIN)
        reduction = self.settings.image_loss
        return F.binary_cross_entropy(image_scores, target, reduction=reduction)

    def _refinement_loss(self, logits: Tensor, targets: ProposalTargets) -> Tensor:
        """Mean over proposals of their weighted cross entropy."""
        floor = self.settings.probability_floor
        if floor:
            probability = logits.softmax(dim=1).gather(1, targets.classes[:, None])[:, 0]
            losses = -(probability + floor).log()
        else:
            losses = F.cross_entropy(logits, targets.classes, reduction="none")
        return (losses * targets.weights).sum() / max(len(losses), 1)

    def _box_loss(self, deltas: Tensor, boxes: Tensor, targets: ProposalTargets) -> Tensor:
        rows = (targets.classes < self.num_classes).nonzero()[:, 0]
        own = deltas[rows].unflatten(1, (-1, 4))
        column = targets.classes[rows] if own.shape[1] > 1 else torch.zeros_like(rows)
        own = own[torch.arange(len(rows), device=rows.device), column]
        wanted = self.box_transform.get_deltas(boxes[rows], boxes[targets.seeds[rows]])
        losses = smooth_l1_loss(own, wanted, beta=BOX_BETA, reduction="none").sum(dim=1)
        total = (losses * targets.weights[rows]).sum()
        if self.settings.box_regression == "agnostic":
            return total * self.settings.box_loss_weight / max(len(rows), 1)
        return total / max(len(boxes), 1)

    def predict(self, predictions: MILPredictions, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes (R, 4 * C) or (R, 4) and probabilities (R, C + 1), background last, of one image.

        Refined probabilities and deltas are means over the branches (SPEC_WEAKSAM 4.1).
        """
        if predictions.refinements:
            branches = [logits.softmax(dim=1) for logits in predictions.refinements]
            probabilities = torch.stack(branches).mean(dim=0)
        else:
            scores = self.instance_scores(predictions)[:, : self.num_classes]
            probabilities = torch.cat([scores, scores.new_zeros(len(scores), 1)], dim=1)
        if not predictions.deltas:
            return boxes, probabilities
        deltas = torch.stack(predictions.deltas).mean(dim=0)
        return self.box_transform.apply_deltas(deltas, boxes), probabilities
