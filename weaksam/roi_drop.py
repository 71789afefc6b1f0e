"""RoI drop: regions with a suspiciously large loss do not train the detector.

Pseudo boxes are partly wrong, and a detector that has learned for a while has large losses on the
wrong ones (SPEC_WEAKSAM 6.1). What is dropped depends on the losses and the iteration alone, so a
resumed run needs no state.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import ROI_BOX_PREDICTOR_REGISTRY, FastRCNNOutputLayers
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage

__all__ = ["DropSettings", "InstanceDropOutputLayers", "drop_masks"]

MODES = ("intersection", "separate", "union")


@dataclass(frozen=True)
class DropSettings:
    """When a region is dropped.

    threshold_cls: cross entropy above which the class loss is suspicious; 4 is a probability of
        0.018 for the label.
    threshold_reg: the same for the box loss, a sum over the four deltas (L1, weights 10 10 5 5).
    first_iteration: nothing is dropped before it.
    mode: "intersection" drops both losses of foreground where both are suspicious; "separate" each
        loss where it is suspicious itself; "union" both losses where either is. The last two also
        drop the class loss of background.
    """

    threshold_cls: float = 4.0
    threshold_reg: float = 4.0
    first_iteration: int = 2000
    mode: str = "intersection"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"MODEL.INSTANCE_DROP.MODE={self.mode!r}; expected one of {MODES}")
        for key, value in (("CLS", self.threshold_cls), ("REG", self.threshold_reg)):
            if not value > 0:
                raise ValueError(
                    f"MODEL.INSTANCE_DROP.THRESH_{key}={value}; expected a loss above 0"
                )


def drop_masks(
    class_losses: Tensor, box_losses: Tensor, foreground: Tensor, settings: DropSettings
) -> tuple[Tensor, Tensor]:
    """(R,) bool: the regions whose class loss is dropped, and those whose box loss is.

    Args:
        class_losses, box_losses: (R,); box losses count on foreground only.
        foreground: (R,) bool.
    """
    high_cls = class_losses.detach() > settings.threshold_cls
    high_reg = (box_losses.detach() > settings.threshold_reg) & foreground
    if settings.mode == "separate":
        return high_cls, high_reg
    dropped = high_cls & high_reg if settings.mode == "intersection" else high_cls | high_reg
    return dropped, dropped


@ROI_BOX_PREDICTOR_REGISTRY.register()
class InstanceDropOutputLayers(FastRCNNOutputLayers):
    """`FastRCNNOutputLayers` whose losses leave regions out; it is the same without `drop`.

    The sums are still divided by the number of all regions. With `drop`, `instance_drop/cls` and
    `instance_drop/reg` record the dropped shares of foreground, `instance_drop/class_C` that of
    class C (contiguous) where either loss was dropped.
    """

    @configurable
    def __init__(
        self, input_shape: ShapeSpec | int, *, drop: DropSettings | None = None, **kwargs: Any
    ):
        super().__init__(input_shape, **kwargs)
        self.drop = drop

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Constructor arguments; those of `MODEL.INSTANCE_DROP` beside the base's."""
        node = cfg.MODEL.INSTANCE_DROP
        settings = DropSettings(node.THRESH_CLS, node.THRESH_REG, node.OPERATE_ITER, node.MODE)
        return super().from_config(cfg, input_shape) | {"drop": settings if node.ISON else None}

    def losses_per_roi(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> dict[str, Tensor]:
        """(R,) values of each loss, 0 where it is dropped."""
        losses = super().losses_per_roi(predictions, proposals)
        if self.drop is None or not proposals:
            return losses
        if get_event_storage().iter < self.drop.first_iteration:
            return losses
        gt_classes = torch.cat([p.gt_classes for p in proposals])
        foreground = (gt_classes >= 0) & (gt_classes < self.num_classes)
        dropped = drop_masks(losses["loss_cls"], losses["loss_box_reg"], foreground, self.drop)
        self._record_shares(gt_classes[foreground], *(mask[foreground] for mask in dropped))
        # Filled, not multiplied by 0, which would keep infinite losses and NaN.
        return {
            name: values.masked_fill(mask, 0.0)
            for (name, values), mask in zip(losses.items(), dropped, strict=True)
        }

    def _record_shares(self, classes: Tensor, cls_dropped: Tensor, reg_dropped: Tensor) -> None:
        """Record the dropped shares of foreground, given its classes and what was dropped of it."""
        either = cls_dropped | reg_dropped
        flags = torch.stack([torch.ones_like(either), either, cls_dropped, reg_dropped])
        counts = flags.float() @ F.one_hot(classes, self.num_classes).float()  # (4, K)
        total, either, cls_count, reg_count = counts.tolist()
        if not sum(total):
            return
        storage = get_event_storage()
        storage.put_scalar("instance_drop/cls", sum(cls_count) / sum(total))
        storage.put_scalar("instance_drop/reg", sum(reg_count) / sum(total))
        for index, count in enumerate(total):
            if count:
                storage.put_scalar(f"instance_drop/class_{index}", either[index] / count)
