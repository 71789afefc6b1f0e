"""DINO's losses, with the drop of suspicious labels (SPEC_WEAKSAM 6.4 and 8.4)."""

from dataclasses import dataclass

import torch
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss

from detectron2.utils import comm
from weaksam.dino.matching import Matches, Targets
from weaksam.dino.positions import cxcywh_to_xyxy

__all__ = [
    "DropSettings",
    "LayerLosses",
    "LossSettings",
    "dropped_matches",
    "layer_losses",
    "mean_count",
]


@dataclass(frozen=True)
class LossSettings:
    """Weights of classes, L1 and GIoU, and the focal loss behind the first."""

    classes: float = 1.0
    l1: float = 5.0
    giou: float = 2.0
    alpha: float = 0.25
    gamma: float = 2.0


@dataclass(frozen=True)
class DropSettings:
    """RoI drop: from an iteration on, the quantile of the matches with the largest class loss."""

    is_on: bool
    quantile: float
    first_iteration: int

    def __post_init__(self) -> None:
        if not 0 < self.quantile <= 1:
            raise ValueError(
                f"MODEL.DINO.INSTANCE_DROP.QUANTILE={self.quantile}: expected a share in (0, 1]"
            )

    def share(self, iteration: int) -> float:
        """The share that is dropped in an iteration."""
        return self.quantile if self.is_on and iteration >= self.first_iteration else 0.0


@dataclass(frozen=True)
class LayerLosses:
    """Weighted losses of each layer, (layers,) each.

    dropped: (layers, M) bool, the matches that added nothing.
    """

    classes: Tensor
    l1: Tensor
    giou: Tensor
    dropped: Tensor

    def named(self, suffix: str, layers: slice) -> dict[str, Tensor]:
        """Sums over some layers, as `loss_cls`, `loss_bbox`, `loss_giou` with a suffix."""
        parts = {"loss_cls": self.classes, "loss_bbox": self.l1, "loss_giou": self.giou}
        return {name + suffix: value[layers].sum() for name, value in parts.items()}


def layer_losses(
    logits: Tensor,
    boxes: Tensor,
    targets: list[Targets],
    matches: Matches,
    count: float,
    settings: LossSettings,
    dropped_share: float = 0.0,
) -> LayerLosses:
    """Losses of every layer by itself: the focal loss of all queries, L1 and GIoU of matched ones.

    Args:
        logits: (layers, B, Q, classes).
        boxes: (layers, B, Q, 4), center and size in [0, 1].
        matches: of these layers, or one for all.
        count: what the sums are divided by; see `mean_count`. Dropping does not change it.
        dropped_share: see `dropped_matches`; 0 drops nothing.
    """
    logits, boxes = logits.float(), boxes.float()
    layers = len(logits)
    image, query, label = (
        x.expand(layers, -1) for x in (matches.image, matches.query, matches.label)
    )
    layer = torch.arange(layers, device=logits.device)[:, None].expand_as(image)
    sizes = torch.tensor([0, *(len(own) for own in targets)], device=logits.device)
    row = sizes.cumsum(0)[image] + label  # of all labels of the batch
    classes = torch.cat([own.classes for own in targets])[row]  # (layers, M)
    wanted = torch.cat([own.boxes for own in targets])[row]  # (layers, M, 4)

    positive = torch.zeros_like(logits)
    positive[layer, image, query, classes] = 1
    focal = sigmoid_focal_loss(logits, positive, settings.alpha, settings.gamma).sum(dim=-1)
    dropped = dropped_matches(focal[layer, image, query].detach(), dropped_share)
    is_left_out = torch.zeros_like(focal, dtype=torch.bool)
    is_left_out[layer, image, query] = dropped
    # `where` and not a product: a dropped loss may be infinite.
    focal = torch.where(is_left_out, 0, focal)

    found = boxes[layer, image, query]
    l1 = (found - wanted).abs().sum(dim=-1)
    giou = generalized_box_iou_loss(cxcywh_to_xyxy(found), cxcywh_to_xyxy(wanted))
    l1, giou = (torch.where(dropped, 0, own) for own in (l1, giou))
    return LayerLosses(
        settings.classes * focal.sum(dim=(1, 2)) / count,
        settings.l1 * l1.sum(dim=1) / count,
        settings.giou * giou.sum(dim=1) / count,
        dropped,
    )


def dropped_matches(losses: Tensor, share: float) -> Tensor:
    """Which matches are dropped: in each layer the floor(share * M) with the largest loss.

    Args:
        losses: (layers, M) classification losses.

    Returns:
        (layers, M) bool. With M < 1 / share nothing is dropped.
    """
    # 0.29 * 100 is a little less than 29.
    count = int(share * losses.shape[1] + 1e-6)
    dropped = torch.zeros_like(losses, dtype=torch.bool)
    return dropped.scatter(1, losses.topk(count, dim=1).indices, True)


def mean_count(count: int, device: torch.device) -> float:
    """Mean of a number over all processes, at least 1; every process must call it."""
    processes = comm.get_world_size()
    if processes > 1:
        total = torch.tensor(float(count), device=device)
        torch.distributed.all_reduce(total)
        count = total.item() / processes
    return max(count, 1.0)
