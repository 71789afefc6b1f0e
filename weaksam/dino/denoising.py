"""Contrastive denoising: noisy copies of the labels are queries that must find the true ones."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from weaksam.dino.matching import Matches, Targets

__all__ = ["Denoising", "DenoisingQueries", "DenoisingSettings"]

LOGIT_LIMIT = math.log(1e3)  # noisy boxes stay this far from 0 and 1, as in mmdetection


@dataclass(frozen=True)
class DenoisingSettings:
    """queries: positive ones; their number over the most labels of an image is the number of
        groups, at least one. 0 switches denoising off.
    label_noise: twice the share of queries whose class is drawn anew.
    box_noise: how far the corners of positive boxes move at most, in halves of their sides.
    """

    queries: int = 100
    label_noise: float = 0.5
    box_noise: float = 1.0


@dataclass(frozen=True)
class DenoisingQueries:
    """D queries in front of Q matching queries.

    content: (B, D, C).  boxes: (B, D, 4) in [0, 1], center and size.  is_hidden: (D + Q, D + Q)
        bool, see `Decoder`.  matches: which query must find which label.
    """

    content: Tensor
    boxes: Tensor
    is_hidden: Tensor
    matches: Matches

    def __len__(self) -> int:
        return self.content.shape[1]


class Denoising(nn.Module):
    """Makes groups of queries: a positive and a negative one for each label of the image.

    Corners of positive boxes move by at most half a side (times `box_noise`), and the queries must
    find their label; those of negative boxes move by more, and they must find nothing. Groups do
    not see each other, and matching queries see no group; groups see the matching queries.
    """

    def __init__(self, num_classes: int, dim: int, settings: DenoisingSettings):
        super().__init__()
        self.label_embedding = nn.Embedding(num_classes, dim)
        self.settings = settings

    def forward(self, targets: list[Targets], num_matching: int) -> DenoisingQueries:
        """Queries for a batch; none if it has no label, or without denoising.

        Args:
            num_matching: queries behind them.
        """
        from transformers.models.rt_detr.modeling_rt_detr import (
            get_contrastive_denoising_training_group,
        )

        content, box_logits, mask, groups = get_contrastive_denoising_training_group(
            [{"class_labels": own.classes, "boxes": own.boxes} for own in targets],
            self.label_embedding.num_embeddings,
            num_matching,
            self._embed,
            self.settings.queries,
            self.settings.label_noise,
            self.settings.box_noise,
        )
        if content is None:
            return self._none(len(targets), num_matching)
        batch, queries, labels = [], [], []
        for i, (own, rows) in enumerate(zip(targets, groups["dn_positive_idx"], strict=True)):
            batch.append(torch.full_like(rows, i))
            queries.append(rows)
            labels.append(torch.arange(len(own)).repeat(groups["dn_num_group"]).to(rows))
        return DenoisingQueries(
            content,
            box_logits.clamp(-LOGIT_LIMIT, LOGIT_LIMIT).sigmoid(),
            mask < 0,
            Matches(torch.cat(batch)[None], torch.cat(queries)[None], torch.cat(labels)[None]),
        )

    def _none(self, batch_size: int, num_matching: int) -> DenoisingQueries:
        """No queries, but a part of the graph: every process must have the same gradients."""
        weight = self.label_embedding.weight
        nothing = torch.zeros(1, 0, dtype=torch.int64, device=weight.device)
        return DenoisingQueries(
            weight[:0].expand(batch_size, -1, -1),
            weight.new_zeros(batch_size, 0, 4),
            torch.zeros(num_matching, num_matching, dtype=torch.bool, device=weight.device),
            Matches(nothing, nothing, nothing),
        )

    def _embed(self, classes: Tensor) -> Tensor:
        """Embeddings of classes; zeros for the number behind the last, which fills up a batch."""
        table = F.pad(self.label_embedding.weight, (0, 0, 0, 1))
        return F.embedding(classes, table)
