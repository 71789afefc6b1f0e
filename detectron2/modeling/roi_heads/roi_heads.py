"""Second stages: ResNet's last stage on every region, or separate heads on pooled features."""

from typing import Any

import torch
from torch import Tensor, nn

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone.resnet import BottleneckBlock, ResNet
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads.base import (  # noqa: F401 (imported from here by users)
    ROI_HEADS_REGISTRY,
    Features,
    Output,
    ROIHeads,
    build_roi_heads,
    select_foreground_proposals,
)
from detectron2.modeling.roi_heads.box_head import build_box_head
from detectron2.modeling.roi_heads.fast_rcnn import build_box_predictor
from detectron2.modeling.roi_heads.mask_head import build_mask_head
from detectron2.structures import Boxes, ImageList, Instances


def _build_pooler(
    cfg: CfgNode, node: CfgNode, input_shape: dict[str, ShapeSpec]
) -> tuple[ROIPooler, ShapeSpec]:
    """Pooler of `MODEL.ROI_HEADS.IN_FEATURES` with the settings of `node`, and its output shape."""
    names = cfg.MODEL.ROI_HEADS.IN_FEATURES
    channels = [input_shape[name].channels for name in names]
    if len(set(channels)) != 1:
        raise ValueError(
            f"MODEL.ROI_HEADS.IN_FEATURES={names} have {channels} channels; one head for all maps "
            "needs equal numbers"
        )
    side = node.POOLER_RESOLUTION
    scales = [1.0 / input_shape[name].stride for name in names]
    pooler = ROIPooler(side, scales, node.POOLER_SAMPLING_RATIO, node.POOLER_TYPE)
    return pooler, ShapeSpec(channels=channels[0], height=side, width=side)


def _check_detections(heads: ROIHeads, instances: list[Instances]) -> None:
    if heads.training:
        raise ValueError("given boxes are for inference: call `eval()` first")
    for own in instances:
        if not (own.has("pred_boxes") and own.has("pred_classes")):
            raise ValueError(
                "given boxes must be Instances with pred_boxes and pred_classes; these have "
                f"{sorted(own.get_fields())}"
            )


@ROI_HEADS_REGISTRY.register()
class Res5ROIHeads(ROIHeads):
    """Heads on one map of stride 16 ("C4"): the last stage of a ResNet runs on every region."""

    @configurable
    def __init__(
        self,
        *,
        in_features: list[str],
        pooler: ROIPooler,
        res5: nn.Module,
        box_predictor: nn.Module,
        mask_head: nn.Module | None = None,
        **kwargs: Any,
    ):
        """
        Args:
            in_features: name of the one map.
            pooler: of regions of that map.
            res5: pooled features -> features of box predictor and mask head.
            box_predictor: averaged features -> predictions; see `FastRCNNOutputLayers`.
            mask_head: features -> masks; None for boxes only.
            kwargs: of `ROIHeads`.
        """
        super().__init__(**kwargs)
        self.in_features = in_features
        self.pooler = pooler
        self.res5 = res5
        self.box_predictor = box_predictor
        self.mask_on = mask_head is not None
        if mask_head is not None:
            self.mask_head = mask_head

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Constructor arguments from `MODEL.ROI_HEADS`, `ROI_BOX_HEAD` and `RESNETS`."""
        in_features = cfg.MODEL.ROI_HEADS.IN_FEATURES
        if len(in_features) != 1:
            raise ValueError(
                f"MODEL.ROI_HEADS.IN_FEATURES={in_features}: Res5ROIHeads take one map; use "
                "StandardROIHeads for a pyramid"
            )
        pooler, pooled = _build_pooler(cfg, cfg.MODEL.ROI_BOX_HEAD, input_shape)
        res5, channels = cls._build_res5_block(cfg)
        averaged = ShapeSpec(channels=channels, height=1, width=1)
        result = super().from_config(cfg) | {
            "in_features": in_features,
            "pooler": pooler,
            "res5": res5,
            "box_predictor": build_box_predictor(cfg, averaged),
        }
        if cfg.MODEL.MASK_ON:
            result["mask_head"] = build_mask_head(cfg, pooled._replace(channels=channels))
        return result

    @classmethod
    def _build_res5_block(cls, cfg: CfgNode) -> tuple[nn.Sequential, int]:
        """Last stage of the ResNet, and its channels."""
        node = cfg.MODEL.RESNETS
        if node.DEFORM_ON_PER_STAGE[-1]:
            raise ValueError("MODEL.RESNETS.DEFORM_ON_PER_STAGE[-1] must be False in Res5ROIHeads")
        growth = 2**3  # of the channels from res2 to res5
        channels = node.RES2_OUT_CHANNELS * growth
        blocks = ResNet.make_stage(
            BottleneckBlock,
            3,
            stride_per_block=[2, 1, 1],
            in_channels=channels // 2,
            bottleneck_channels=node.NUM_GROUPS * node.WIDTH_PER_GROUP * growth,
            out_channels=channels,
            num_groups=node.NUM_GROUPS,
            norm=node.NORM,
            stride_in_1x1=node.STRIDE_IN_1X1,
        )
        return nn.Sequential(*blocks), channels

    def forward(
        self,
        images: ImageList,
        features: Features,
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> Output:
        """In training ([], losses), else (detections, {}); see `StandardROIHeads.forward`."""
        if not self.training:
            _, predictions = self._predict(features, proposals)
            instances, _ = self.box_predictor.inference(predictions, proposals)
            return self.forward_with_given_boxes(features, instances), {}
        proposals = self._sampled(proposals, targets)
        region_features, predictions = self._predict(features, proposals)
        losses = self.box_predictor.losses(predictions, proposals)
        if self.mask_on:
            # Masks train on the features that the boxes have already paid for.
            foreground, masks = select_foreground_proposals(proposals, self.num_classes)
            losses |= self.mask_head(region_features[torch.cat(masks)], foreground)
        return [], losses

    def _predict(
        self, features: Features, proposals: list[Instances]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """(R, C, H, W) features of the regions, and the predictions of the box predictor."""
        x = self._shared_roi_transform(features, [p.proposal_boxes for p in proposals])
        return x, self.box_predictor(x.mean(dim=[2, 3]))

    def forward_with_given_boxes(
        self, features: Features, instances: list[Instances]
    ) -> list[Instances]:
        """Detections that have `pred_boxes` and `pred_classes`, with `pred_masks` added."""
        _check_detections(self, instances)
        if not self.mask_on:
            return instances
        x = self._shared_roi_transform(features, [x.pred_boxes for x in instances])
        return self.mask_head(x, instances)

    def _shared_roi_transform(self, features: Features, boxes: list[Boxes]) -> Tensor:
        return self.res5(self.pooler([features[name] for name in self.in_features], boxes))


@ROI_HEADS_REGISTRY.register()
class StandardROIHeads(ROIHeads):
    """Box and mask heads that pool their own features, from one map or a pyramid."""

    @configurable
    def __init__(
        self,
        *,
        box_in_features: list[str],
        box_pooler: ROIPooler,
        box_head: nn.Module,
        box_predictor: nn.Module,
        mask_in_features: list[str] | None = None,
        mask_pooler: ROIPooler | None = None,
        mask_head: nn.Module | None = None,
        train_on_pred_boxes: bool = False,
        **kwargs: Any,
    ):
        """
        Args:
            box_in_features, mask_in_features: names of the maps that are pooled from; None for
                no masks.
            box_pooler, mask_pooler: of regions of those maps.
            box_head: pooled features -> input of the predictor.
            box_predictor: -> predictions; see `FastRCNNOutputLayers`.
            mask_head: pooled features -> masks; see `BaseMaskRCNNHead`.
            train_on_pred_boxes: train the mask head on predicted boxes instead of proposals.
            kwargs: of `ROIHeads`.
        """
        super().__init__(**kwargs)
        self.in_features = self.box_in_features = box_in_features
        self.box_pooler = box_pooler
        self.box_head = box_head
        self.box_predictor = box_predictor
        self.mask_on = mask_in_features is not None
        if self.mask_on:
            self.mask_in_features = mask_in_features
            self.mask_pooler = mask_pooler
            self.mask_head = mask_head
        self.train_on_pred_boxes = train_on_pred_boxes

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Constructor arguments from `MODEL.ROI_HEADS`, `ROI_BOX_HEAD` and `ROI_MASK_HEAD`."""
        result = super().from_config(cfg)
        result["train_on_pred_boxes"] = cfg.MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES
        result |= cls._init_box_head(cfg, input_shape)
        if cfg.MODEL.MASK_ON:
            result |= cls._init_mask_head(cfg, input_shape)
        return result

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Constructor arguments of the box head; subclasses may build others."""
        pooler, shape = _build_pooler(cfg, cfg.MODEL.ROI_BOX_HEAD, input_shape)
        box_head = build_box_head(cfg, shape)
        return {
            "box_in_features": cfg.MODEL.ROI_HEADS.IN_FEATURES,
            "box_pooler": pooler,
            "box_head": box_head,
            "box_predictor": build_box_predictor(cfg, box_head.output_shape),
        }

    @classmethod
    def _init_mask_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Constructor arguments of the mask head; subclasses may build others."""
        pooler, shape = _build_pooler(cfg, cfg.MODEL.ROI_MASK_HEAD, input_shape)
        return {
            "mask_in_features": cfg.MODEL.ROI_HEADS.IN_FEATURES,
            "mask_pooler": pooler,
            "mask_head": build_mask_head(cfg, shape),
        }

    def forward(
        self,
        images: ImageList,
        features: Features,
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> Output:
        """Detections, or in training the losses.

        Args:
            images: not used.
            features: maps by name, (N, C, H, W).
            proposals: of each image, with `proposal_boxes` and `objectness_logits`.
            targets: for training, of each image, with `gt_boxes`, `gt_classes` and, for masks,
                `gt_masks`.

        Returns:
            in training, the sampled proposals and `loss_cls`, `loss_box_reg`, `loss_mask`; else
            Instances with `pred_boxes`, `scores`, `pred_classes`, `pred_masks` (N, 1, M, M), and
            no losses.
        """
        if self.training:
            proposals = self._sampled(proposals, targets)
            losses = self._forward_box(features, proposals)
            # After the boxes, which may replace `proposal_boxes`.
            losses |= self._forward_mask(features, proposals)
            return proposals, losses
        instances = self._forward_box(features, proposals)
        return self.forward_with_given_boxes(features, instances), {}

    def forward_with_given_boxes(
        self, features: Features, instances: list[Instances]
    ) -> list[Instances]:
        """Detections that have `pred_boxes` and `pred_classes`, with `pred_masks` added."""
        _check_detections(self, instances)
        return self._forward_mask(features, instances)

    def _forward_box(
        self, features: Features, proposals: list[Instances]
    ) -> dict[str, Tensor] | list[Instances]:
        """Losses in training, else detections."""
        boxes = [x.proposal_boxes for x in proposals]
        pooled = self.box_pooler([features[name] for name in self.box_in_features], boxes)
        predictions = self.box_predictor(self.box_head(pooled))
        if not self.training:
            detections, _ = self.box_predictor.inference(predictions, proposals)
            return detections
        losses = self.box_predictor.losses(predictions, proposals)
        if self.train_on_pred_boxes:
            self._replace_by_predictions(proposals, predictions)
        return losses

    @torch.no_grad()
    def _replace_by_predictions(
        self, proposals: list[Instances], predictions: tuple[Tensor, Tensor]
    ) -> None:
        """Set `proposal_boxes` to the boxes predicted for the true classes."""
        predicted = self.box_predictor.predict_boxes_for_gt_classes(predictions, proposals)
        for own, boxes in zip(proposals, predicted, strict=True):
            own.proposal_boxes = Boxes(boxes)

    def _forward_mask(
        self, features: Features, instances: list[Instances]
    ) -> dict[str, Tensor] | list[Instances]:
        """Losses in training, from foreground only; else the detections with masks."""
        if not self.mask_on:
            return {} if self.training else instances
        if self.training:
            instances, _ = select_foreground_proposals(instances, self.num_classes)
        field = "proposal_boxes" if self.training else "pred_boxes"
        maps = [features[name] for name in self.mask_in_features]
        pooled = self.mask_pooler(maps, [x.get(field) for x in instances])
        return self.mask_head(pooled, instances)
