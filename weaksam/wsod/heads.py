"""The second stage of a weak detector: pool the proposals, score them, learn from tags."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, build_box_head
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference_single_image
from detectron2.structures import Boxes, Instances
from weaksam.wsod.drop_block import ConcreteDropBlock
from weaksam.wsod.predictor import MILPredictor
from weaksam.wsod.settings import settings_from_config

__all__ = ["DetectionLimits", "MILHeads"]


@dataclass(frozen=True)
class DetectionLimits:
    """Which scored boxes become detections: those above a score, after NMS, at most so many."""

    score: float
    nms: float
    per_image: int


@ROI_HEADS_REGISTRY.register()
class MILHeads(nn.Module):
    """Learns from tags which proposals are the objects.

    Its maps are those of `MODEL.ROI_HEADS.IN_FEATURES`; all proposals of an image take part.
    """

    mask_on = False  # as other RoI heads say whether they predict masks

    @configurable
    def __init__(
        self,
        *,
        in_features: list[str],
        pooler: ROIPooler,
        box_head: nn.Module,
        predictor: MILPredictor,
        limits: DetectionLimits,
        drop_block: ConcreteDropBlock | None = None,
        head_batch: int = 0,
    ):
        """
        Args:
            head_batch: proposals that are pooled and go through the box head at once in training,
                whose values are computed again for the gradient; 0 for all, which keeps them.
        """
        super().__init__()
        if head_batch and drop_block is not None:
            raise ValueError(
                "MODEL.WSOD.DETACHED_HEAD_BATCH cannot be combined with DROP_BLOCK, whose batch "
                "norm sees all proposals together: set one of them off"
            )
        self.in_features, self.pooler, self.box_head = in_features, pooler, box_head
        self.predictor, self.limits, self.drop_block = predictor, limits, drop_block
        self.head_batch = head_batch

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Constructor arguments from `MODEL.WSOD`, `ROI_HEADS`, `ROI_BOX_HEAD` and `TEST`."""
        heads, node, wsod = cfg.MODEL.ROI_HEADS, cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.WSOD
        names = list(heads.IN_FEATURES)
        channels = {input_shape[name].channels for name in names}
        if len(channels) != 1:
            raise ValueError(
                f"MODEL.ROI_HEADS.IN_FEATURES={names} have {sorted(channels)} channels; one head "
                "serves all maps, so they must have equally many"
            )
        (width,) = channels
        side = node.POOLER_RESOLUTION
        box_head = build_box_head(cfg, ShapeSpec(channels=width, height=side, width=side))
        drop = wsod.DROP_BLOCK
        return {
            "in_features": names,
            "pooler": ROIPooler(
                output_size=side,
                scales=[1.0 / input_shape[name].stride for name in names],
                sampling_ratio=node.POOLER_SAMPLING_RATIO,
                pooler_type=node.POOLER_TYPE,
            ),
            "box_head": box_head,
            "predictor": MILPredictor(
                box_head.output_shape.channels,
                heads.NUM_CLASSES,
                settings_from_config(wsod),
                Box2BoxTransform(weights=node.BBOX_REG_WEIGHTS),
            ),
            "limits": DetectionLimits(
                heads.SCORE_THRESH_TEST, heads.NMS_THRESH_TEST, cfg.TEST.DETECTIONS_PER_IMAGE
            ),
            "drop_block": ConcreteDropBlock(
                width, probability=drop.PROB, size=drop.SIZE, temperature=drop.TEMPERATURE
            )
            if drop.ENABLED
            else None,
            "head_batch": wsod.DETACHED_HEAD_BATCH,
        }

    def losses(
        self,
        features: dict[str, Tensor],
        proposals: list[Instances],
        tags: list[Tensor],
        foreground_weights: list[Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Mean losses of the images; see `MILPredictor.losses`."""
        boxes = [own.proposal_boxes.tensor for own in proposals]
        predictions = self.predictor(self._region_features(features, boxes))
        weights = foreground_weights or [None] * len(boxes)
        losses = [
            self.predictor.losses(own, own_boxes, own_tags, own_weights)
            for own, own_boxes, own_tags, own_weights in zip(
                predictions.split([len(b) for b in boxes]), boxes, tags, weights, strict=True
            )
        ]
        return {name: torch.stack([own[name] for own in losses]).mean() for name in losses[0]}

    def predict(
        self, features: dict[str, Tensor], proposals: list[Instances]
    ) -> list[tuple[Tensor, Tensor]]:
        """For each image boxes (R, 4 * C) or (R, 4) and probabilities (R, C + 1) of its proposals.

        Rows are those of the proposals, so that several views of an image can be averaged.
        """
        boxes = [own.proposal_boxes.tensor for own in proposals]
        predictions = self.predictor(self._region_features(features, boxes))
        return [
            self.predictor.predict(own, own_boxes)
            for own, own_boxes in zip(
                predictions.split([len(b) for b in boxes]), boxes, strict=True
            )
        ]

    def detections(self, boxes: Tensor, scores: Tensor, size_hw: tuple[int, int]) -> Instances:
        """Detections of an image from what `predict` gives."""
        limits = self.limits
        return fast_rcnn_inference_single_image(
            boxes, scores, size_hw, limits.score, limits.nms, limits.per_image
        )[0]

    def _region_features(self, features: dict[str, Tensor], boxes: list[Tensor]) -> Tensor:
        """(R, D) of the proposals of all images, in order."""
        maps = [features[name] for name in self.in_features]
        count = sum(len(own) for own in boxes)
        if not (self.head_batch and self.training and count > self.head_batch):
            return self._pool_and_embed(maps, boxes)
        parts = []
        for i, own in enumerate(boxes):
            own_maps = [level[i : i + 1] for level in maps]
            for part in own.split(self.head_batch):
                embed = partial(self._pool_and_embed, boxes=[part])
                parts.append(checkpoint(embed, own_maps, use_reentrant=False))
        return torch.cat(parts)

    def _pool_and_embed(self, maps: list[Tensor], boxes: list[Tensor]) -> Tensor:
        pooled = self.pooler(maps, [Boxes(own) for own in boxes])
        return self.box_head(pooled if self.drop_block is None else self.drop_block(pooled))
