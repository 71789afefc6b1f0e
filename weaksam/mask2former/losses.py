"""What Mask2Former trains on, and its losses: the library's matching and terms for every stage."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from detectron2.structures import BitMasks, PolygonMasks
from detectron2.utils import comm
from weaksam.mask2former.head import Stage
from weaksam.mask2former.settings import HeadSettings, LossSettings, library, library_config

__all__ = ["MaskTargets", "build_criterion", "find_targets", "stage_losses"]


@dataclass(frozen=True)
class MaskTargets:
    """Instances of B images, in pixels of the padded batch.

    masks: of each image (N, H, W) float32, 0 or 1.  classes: of each image (N,) int64.
    """

    masks: list[Tensor]
    classes: list[Tensor]


def find_targets(
    batched_inputs: Sequence[dict[str, Any]], frame_hw: tuple[int, int], device: torch.device
) -> MaskTargets:
    """Targets of the inputs' `instances`, padded to the size of the batch.

    Raises:
        ValueError: an input has no instances, or instances without masks.
    """
    masks, classes = [], []
    for x in batched_inputs:
        name, own = x.get("file_name", "an image"), x.get("instances")
        if own is None or (len(own) and not own.has("gt_masks")):
            raise ValueError(
                f"the input of {name} has no {'instances' if own is None else 'masks'}: MaskFormer "
                "trains on masks (DATASETS.TRAIN names a file with segmentations, MODEL.MASK_ON "
                "is True)"
            )
        height, width = own.image_size
        drawn = own.gt_masks if own.has("gt_masks") else BitMasks(torch.zeros(0, height, width))
        if isinstance(drawn, PolygonMasks):
            drawn = BitMasks.from_polygon_masks(drawn, height, width)
        padding = (0, frame_hw[1] - width, 0, frame_hw[0] - height)
        masks.append(F.pad(drawn.tensor.to(device).float(), padding))
        classes.append(own.gt_classes.to(device))
    return MaskTargets(masks, classes)


def build_criterion(head: HeadSettings, loss: LossSettings) -> nn.Module:
    """The library's `Mask2FormerLoss`, unweighted; its buffer is `empty_weight`."""
    return library().Mask2FormerLoss(library_config(head, loss), weight_dict={})


def stage_losses(
    criterion: nn.Module, settings: LossSettings, stages: Sequence[Stage], targets: MaskTargets
) -> dict[str, Tensor]:
    """Weighted losses: `loss_ce`, `loss_mask`, `loss_dice` of the last stage, `..._i` of stage i.

    Mask losses are divided by the mean number of instances on a process, so that the gradient,
    which is averaged over processes, is that of the whole batch.
    """
    weights = {
        "loss_cross_entropy": ("loss_ce", settings.class_weight),
        "loss_mask": ("loss_mask", settings.mask_weight),
        "loss_dice": ("loss_dice", settings.dice_weight),
    }
    num_masks = _mean_count(targets)
    numbered = [("", stages[-1])]
    if settings.deep_supervision:
        numbered += [(f"_{i}", stage) for i, stage in enumerate(stages[:-1])]
    losses = {}
    # In float32 also under autocast: sums over many points overflow half precision.
    with torch.autocast(stages[-1].mask_logits.device.type, enabled=False):
        for suffix, stage in numbered:
            classes, masks = stage.class_logits.float(), stage.mask_logits.float()
            pairs = criterion.matcher(masks, classes, targets.masks, targets.classes)
            own = criterion.loss_labels(classes, targets.classes, pairs)
            own |= criterion.loss_masks(masks, targets.masks, pairs, num_masks)
            for name, value in own.items():
                renamed, weight = weights[name]
                losses[renamed + suffix] = weight * value
    return losses


def _mean_count(targets: MaskTargets) -> Tensor:
    """Instances a process, over all processes; at least 1."""
    device = targets.classes[0].device
    count = torch.tensor(float(sum(map(len, targets.classes))), device=device)
    if comm.get_world_size() > 1:
        dist.all_reduce(count)
    return (count / comm.get_world_size()).clamp(min=1)
