"""Masks of regions: a square map of probabilities for each class."""

from collections.abc import Sequence
from typing import Any

import torch
from fvcore.nn.weight_init import c2_msra_fill
from torch import Tensor, nn
from torch.nn import functional as F

from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ConvTranspose2d, ShapeSpec, get_norm
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage
from detectron2.utils.registry import Registry

# Called as f(cfg, input_shape: ShapeSpec); pooled features, Instances -> losses, or Instances.
ROI_MASK_HEAD_REGISTRY = Registry("ROI_MASK_HEAD")


def mask_rcnn_loss(
    pred_mask_logits: Tensor, instances: list[Instances], vis_period: int = 0
) -> Tensor:
    """Binary cross entropy of the masks for the true classes, averaged over mask pixels.

    Args:
        pred_mask_logits: (F, K, M, M), or (F, 1, M, M) for one mask for all classes, for the
            foreground regions of all images, in order.
        instances: foreground regions of each image, with `proposal_boxes`, `gt_classes` and
            `gt_masks`.
        vis_period: store predicted masks beside true ones every so many iterations; 0: never.
    """
    side = pred_mask_logits.shape[2]
    if side != pred_mask_logits.shape[3]:
        raise ValueError(f"masks must be square, got shape {tuple(pred_mask_logits.shape)}")
    nonempty = [x for x in instances if len(x) > 0]
    if not nonempty:
        return pred_mask_logits.sum() * 0
    device = pred_mask_logits.device
    gt_masks = torch.cat([_crop_true_masks(x, side).to(device) for x in nonempty])  # (F, M, M)
    if pred_mask_logits.shape[1] == 1:
        logits = pred_mask_logits[:, 0]
    else:
        classes = torch.cat([x.gt_classes for x in nonempty]).to(torch.int64)
        logits = pred_mask_logits[torch.arange(len(classes), device=device), classes]
    _log_mask_stats(logits.detach(), gt_masks.bool())
    gt_masks = gt_masks.to(torch.float32)
    storage = get_event_storage()
    if vis_period > 0 and storage.iter % vis_period == 0:
        pairs = torch.cat([logits.detach().sigmoid(), gt_masks], dim=2)
        for i, pair in enumerate(pairs):
            name = f"Left: mask prediction;   Right: mask GT ({i})"
            storage.put_image(name, pair.expand(3, -1, -1))
    return F.binary_cross_entropy_with_logits(logits, gt_masks, reduction="mean")


def _crop_true_masks(instances: Instances, side: int) -> Tensor:
    if not instances.has("gt_masks"):
        raise ValueError(
            "the annotations of an image have no masks, which a mask head trains on. Leave such "
            "images out, or set MODEL.MASK_ON False to train boxes only"
        )
    return instances.gt_masks.crop_and_resize(instances.proposal_boxes.tensor, side)


def _log_mask_stats(logits: Tensor, gt_masks: Tensor) -> None:
    """Record the pixel accuracy and the rates of false positives and negatives."""
    wrong = (logits > 0) != gt_masks
    storage = get_event_storage()
    storage.put_scalar("mask_rcnn/accuracy", 1 - wrong.sum().item() / max(wrong.numel(), 1))
    for name, truth in (("false_positive", ~gt_masks), ("false_negative", gt_masks)):
        rate = (wrong & truth).sum().item() / max(truth.sum().item(), 1)
        storage.put_scalar(f"mask_rcnn/{name}", rate)


def mask_rcnn_inference(pred_mask_logits: Tensor, pred_instances: list[Instances]) -> None:
    """Set `pred_masks` (N, 1, M, M) of each image: probabilities for the predicted classes.

    Args:
        pred_mask_logits: (R, K, M, M) or (R, 1, M, M) for the detections of all images, in order.
        pred_instances: of each image, with `pred_classes`.
    """
    if pred_mask_logits.shape[1] == 1:
        chosen = pred_mask_logits
    else:
        classes = torch.cat([x.pred_classes for x in pred_instances])
        index = torch.arange(pred_mask_logits.shape[0], device=classes.device)
        chosen = pred_mask_logits[index, classes][:, None]
    masks = chosen.sigmoid().split([len(x) for x in pred_instances])
    for own_masks, instances in zip(masks, pred_instances, strict=True):
        instances.pred_masks = own_masks


class BaseMaskRCNNHead(nn.Module):
    """Mask loss and inference around `layers`, which a subclass defines."""

    @configurable
    def __init__(self, *, loss_weight: float = 1.0, vis_period: int = 0):
        """
        Args:
            loss_weight: of `loss_mask`.
            vis_period: see `mask_rcnn_loss`.
        """
        super().__init__()
        self.vis_period = vis_period
        self.loss_weight = loss_weight

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Constructor arguments from `VIS_PERIOD`."""
        return {"vis_period": cfg.VIS_PERIOD}

    def forward(self, x: Tensor, instances: list[Instances]) -> dict[str, Tensor] | list[Instances]:
        """`loss_mask` in training; otherwise the given Instances, with `pred_masks`.

        Args:
            x: (R, C, H, W) pooled features of the regions of all images, in order.
            instances: see `mask_rcnn_loss` and `mask_rcnn_inference`.
        """
        logits = self.layers(x)
        if self.training:
            loss = mask_rcnn_loss(logits, instances, self.vis_period)
            return {"loss_mask": loss * self.loss_weight}
        mask_rcnn_inference(logits, instances)
        return instances

    def layers(self, x: Tensor) -> Tensor:
        """(R, C, H, W) -> logits (R, K or 1, M, M)."""
        raise NotImplementedError(f"{type(self).__name__} must define `layers`")


@ROI_MASK_HEAD_REGISTRY.register()
class MaskRCNNConvUpsampleHead(BaseMaskRCNNHead, nn.Sequential):
    """3x3 convolutions, upsampling to twice the size, and a 1x1 convolution for the masks."""

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        num_classes: int,
        conv_dims: Sequence[int],
        conv_norm: str = "",
        **kwargs: Any,
    ):
        """
        Args:
            input_shape: only its channels are used.
            num_classes: number of masks; 1 for one mask for all classes.
            conv_dims: channels of the 3x3 convolutions and, last, of the upsampling.
            conv_norm: norm of the 3x3 convolutions, see `get_norm`.
            kwargs: of `BaseMaskRCNNHead`.
        """
        super().__init__(**kwargs)
        if not conv_dims:
            raise ValueError("conv_dims is empty: the upsampling needs its number of channels")
        *hidden, upsampled = conv_dims
        convs = []
        channels = input_shape.channels
        for i, conv_dim in enumerate(hidden, start=1):
            conv = Conv2d(
                channels,
                conv_dim,
                kernel_size=3,
                padding=1,
                bias=not conv_norm,
                norm=get_norm(conv_norm, conv_dim),
                activation=nn.ReLU(),
            )
            self.add_module(f"mask_fcn{i}", conv)
            convs.append(conv)
            channels = conv_dim
        self.deconv = ConvTranspose2d(channels, upsampled, kernel_size=2, stride=2)
        self.deconv_relu = nn.ReLU()
        self.predictor = Conv2d(upsampled, num_classes, kernel_size=1)
        for layer in (*convs, self.deconv):
            c2_msra_fill(layer)
        nn.init.normal_(self.predictor.weight, std=0.001)
        nn.init.zeros_(self.predictor.bias)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Constructor arguments from `MODEL.ROI_MASK_HEAD` and the number of classes."""
        node = cfg.MODEL.ROI_MASK_HEAD
        return super().from_config(cfg, input_shape) | {
            "input_shape": input_shape,
            "num_classes": 1 if node.CLS_AGNOSTIC_MASK else cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "conv_dims": [node.CONV_DIM] * (node.NUM_CONV + 1),
            "conv_norm": node.NORM,
        }

    def layers(self, x: Tensor) -> Tensor:
        for layer in self:
            x = layer(x)
        return x


def build_mask_head(cfg: CfgNode, input_shape: ShapeSpec) -> nn.Module:
    """Mask head `cfg.MODEL.ROI_MASK_HEAD.NAME` for pooled features of this shape."""
    return ROI_MASK_HEAD_REGISTRY.get(cfg.MODEL.ROI_MASK_HEAD.NAME)(cfg, input_shape)
