"""Turn a source of proposal scores into training targets: seeds, and what each proposal should be.

A seed is a proposal taken as an object of a tagged class. Each proposal then follows the seed that
it overlaps most: it has its class where the overlap is large enough, else it is background, and in
both cases it counts as much as that seed is certain (SPEC_WEAKSAM 4.1, 4.2, 8.4).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import box_iou, nms

__all__ = ["SEED_RULES", "ProposalTargets", "SeedRule", "Seeds", "assign_proposals", "find_seeds"]


@dataclass(frozen=True)
class SeedRule:
    """How seeds are chosen and how proposals follow them; the defaults are MIST's.

    name: "top_share" (MIST), "top_ratio" (OICR as the WeakSAM baseline has it) or "top1" (OICR as
        published).
    share: of all proposals, those that may become seeds of a class ("top_share").
    iou: a candidate goes where it overlaps a better one of its class by as much ("top_share").
    ratio: of the best score of its class, what a seed needs ("top_ratio").
    nms: a candidate goes where it overlaps a better one, of any class, by more ("top_ratio").
    fg_iou: overlap with its seed from which a proposal has the seed's class.
    min_rois: images of fewer proposals have one seed a class ("top_share").
    """

    name: str = "top_share"
    share: float = 0.15
    iou: float = 0.2
    ratio: float = 0.9
    nms: float = 0.5
    fg_iou: float = 0.5
    min_rois: int = 10

    def __post_init__(self) -> None:
        if self.name not in SEED_RULES:
            raise ValueError(f"MODEL.WSOD.SEEDS={self.name!r}; expected one of {list(SEED_RULES)}")
        for key in ("share", "iou", "ratio", "nms", "fg_iou"):
            if not 0 < getattr(self, key) <= 1:
                raise ValueError(f"{key}={getattr(self, key)}; expected more than 0, at most 1")


@dataclass(frozen=True)
class Seeds:
    """S seeds of one image: rows of its proposals, their class indices and source scores."""

    rows: Tensor  # (S,) int64
    classes: Tensor  # (S,) int64
    scores: Tensor  # (S,) float

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class ProposalTargets:
    """What R proposals should be.

    classes: (R,) int64, the number of classes for background.
    weights: (R,) float, of the proposal's losses.
    seeds: (R,) int64, row of the proposal that each one follows.
    """

    classes: Tensor
    weights: Tensor
    seeds: Tensor


@torch.no_grad()
def find_seeds(boxes: Tensor, scores: Tensor, tags: Tensor, rule: SeedRule) -> Seeds:
    """The seeds of an image, class by class.

    Args:
        boxes: (R, 4) proposals, x0, y0, x1, y1 in pixels.
        scores: (R, C) of each class, without a background; more columns are ignored.
        tags: (T,) int64, the image's class indices, ascending.
    """
    if not len(boxes) or not len(tags):
        nothing = tags.new_zeros(0)
        return Seeds(nothing, nothing, scores.new_zeros(0))
    return SEED_RULES[rule.name](boxes, scores, tags, rule)


def _top_share(boxes: Tensor, scores: Tensor, tags: Tensor, rule: SeedRule) -> Seeds:
    """The best share of each class, without those near a better one (kept or not)."""
    count = len(boxes)
    kept = 1 if count < rule.min_rois else max(1, int(rule.share * count))
    order = scores[:, tags].sort(dim=0, descending=True, stable=True).indices[:kept].T  # (T, k)
    candidates = boxes[order]  # (T, k, 4)
    overlaps = torch.stack([box_iou(own, own) for own in candidates])  # (T, k, k)
    near_better = overlaps.tril(diagonal=-1).amax(dim=2) >= rule.iou
    classes, ranks = (~near_better).nonzero(as_tuple=True)
    rows = order[classes, ranks]
    return Seeds(rows, tags[classes], scores[rows, tags[classes]])


def _top_ratio(boxes: Tensor, scores: Tensor, tags: Tensor, rule: SeedRule) -> Seeds:
    """All that come near the best score of their class, thinned over all classes together."""
    own = scores[:, tags].T  # (T, R)
    classes, rows = (own >= rule.ratio * own.amax(dim=1, keepdim=True)).nonzero(as_tuple=True)
    candidates = own[classes, rows]
    # Upstream parity: a class may delete the seed of another one (SPEC_WEAKSAM 9.5).
    kept = nms(boxes[rows], candidates, rule.nms)
    return Seeds(rows[kept], tags[classes[kept]], candidates[kept])


def _top1(boxes: Tensor, scores: Tensor, tags: Tensor, rule: SeedRule) -> Seeds:
    """The best proposal of each class, ascending; one that is taken is no other class's."""
    left = scores.clone()
    rows = []
    for tag in tags.tolist():
        row = left[:, tag].argmax()
        rows.append(row)
        left[row] = 0
    chosen = torch.stack(rows)
    return Seeds(chosen, tags, scores[chosen, tags])


SEED_RULES: dict[str, Callable[[Tensor, Tensor, Tensor, SeedRule], Seeds]] = {
    "top_share": _top_share,
    "top_ratio": _top_ratio,
    "top1": _top1,
}


@torch.no_grad()
def assign_proposals(
    boxes: Tensor, seeds: Seeds, num_classes: int, rule: SeedRule
) -> ProposalTargets:
    """Classes, weights and seeds of all R proposals; without a seed every weight is 0."""
    count = len(boxes)
    background = torch.full((count,), num_classes, dtype=torch.int64, device=boxes.device)
    if not len(seeds):
        rows = torch.arange(count, device=boxes.device)
        return ProposalTargets(background, boxes.new_zeros(count), rows)
    overlaps = box_iou(boxes, boxes[seeds.rows])  # (R, S)
    nearest = overlaps.argmax(dim=1)  # the first one of equals
    overlap = overlaps.gather(1, nearest[:, None])[:, 0]
    # Upstream parity: published OICR asks for more than the threshold, the others for as much.
    near = overlap > rule.fg_iou if rule.name == "top1" else overlap >= rule.fg_iou
    classes = torch.where(near, seeds.classes[nearest], background)
    return ProposalTargets(classes, seeds.scores[nearest].float(), seeds.rows[nearest])
