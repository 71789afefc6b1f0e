"""Mask2Former as a meta-architecture, for instance segmentation."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, MetaArchitecture
from detectron2.modeling.backbone import Backbone, build_backbone
from detectron2.structures import ImageList, Instances
from weaksam.mask2former.head import MaskFormerHead, Stage
from weaksam.mask2former.inference import find_instances
from weaksam.mask2former.losses import build_criterion, find_targets, stage_losses
from weaksam.mask2former.settings import HeadSettings, LossSettings

__all__ = ["MaskFormer"]

# Maps that the pixel decoder takes: the finest is that of the masks, 3 go through attention. The
# last two have strides of 16 and 32, or less in a dilated backbone.
NUM_MAPS = 4
FINEST_STRIDES = (4, 8)


@META_ARCH_REGISTRY.register()
class MaskFormer(MetaArchitecture, nn.Module):
    """Mask2Former, under the name that its configs have; checkpoints are the original project's.

    It takes a list of dicts, one for each image: `image` (C, H, W); in training `instances` with
    `gt_masks` and `gt_classes`; optionally `height` and `width` of the output.
    """

    num_classes_key = "MODEL.SEM_SEG_HEAD.NUM_CLASSES"

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        in_features: Sequence[str],
        head_settings: HeadSettings,
        loss_settings: LossSettings,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        size_divisibility: int = 32,
        max_instances: int = 100,
    ):
        """
        Args:
            backbone: images -> maps by name.
            in_features: its maps of strides 4, 8, 16, 32, or with a dilated backbone less.
            pixel_mean, pixel_std: of each channel, to normalize pixels.
            size_divisibility: of the padded images' sides.
            max_instances: results an image has at most.
        """
        super().__init__()
        self.backbone = backbone
        self.in_features = [*in_features]
        shapes = backbone.output_shape()
        strides = tuple(shapes[name].stride for name in self.in_features if name in shapes)
        is_ordered = list(strides) == sorted(strides)
        if len(strides) != NUM_MAPS or strides[:2] != FINEST_STRIDES or not is_ordered:
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.IN_FEATURES={self.in_features}: must name {NUM_MAPS} maps, of "
                "strides 4, 8 and at least 8; the backbone has "
                f"{ {name: shape.stride for name, shape in shapes.items()} }"
            )
        self.sem_seg_head = MaskFormerHead(
            in_channels=[shapes[name].channels for name in self.in_features],
            settings=head_settings,
        )
        self.criterion = build_criterion(head_settings, loss_settings)
        self.loss_settings = loss_settings
        self.size_divisibility = size_divisibility
        self.max_instances = max_instances
        mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (pixel_mean, pixel_std))
        self.register_buffer("pixel_mean", mean, persistent=False)
        self.register_buffer("pixel_std", std, persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Constructor arguments from `MODEL` and `TEST.DETECTIONS_PER_IMAGE`."""
        if not cfg.MODEL.MASK_ON:
            raise ValueError("MaskFormer trains on masks and predicts them: set MODEL.MASK_ON True")
        node, head = cfg.MODEL.MASK_FORMER, cfg.MODEL.SEM_SEG_HEAD
        return {
            "backbone": build_backbone(cfg),
            "in_features": head.IN_FEATURES,
            "head_settings": HeadSettings(
                num_classes=head.NUM_CLASSES,
                pixel_channels=head.CONVS_DIM,
                mask_channels=head.MASK_DIM,
                encoder_layers=head.TRANSFORMER_ENC_LAYERS,
                num_stages=node.DEC_LAYERS,
                num_queries=node.NUM_OBJECT_QUERIES,
                hidden_channels=node.HIDDEN_DIM,
                num_heads=node.NHEADS,
                feedforward=node.DIM_FEEDFORWARD,
                dropout=node.DROPOUT,
                pre_norm=node.PRE_NORM,
                enforce_input_projection=node.ENFORCE_INPUT_PROJ,
            ),
            "loss_settings": LossSettings(
                class_weight=node.CLASS_WEIGHT,
                mask_weight=node.MASK_WEIGHT,
                dice_weight=node.DICE_WEIGHT,
                no_object_weight=node.NO_OBJECT_WEIGHT,
                num_points=node.TRAIN_NUM_POINTS,
                oversample_ratio=node.OVERSAMPLE_RATIO,
                importance_ratio=node.IMPORTANCE_SAMPLE_RATIO,
                deep_supervision=node.DEEP_SUPERVISION,
            ),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "size_divisibility": node.SIZE_DIVISIBILITY,
            "max_instances": cfg.TEST.DETECTIONS_PER_IMAGE,
        }

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return self.pixel_mean.device

    def forward(
        self, batched_inputs: list[dict[str, Any]]
    ) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """Losses in training (see `stage_losses`), else `instances` for each input."""
        images = self.preprocess_image(batched_inputs)
        stages = self.stages(images)
        frame_hw = tuple(images.tensor.shape[-2:])
        if self.training:
            targets = find_targets(batched_inputs, frame_hw, self.device)
            return stage_losses(self.criterion, self.loss_settings, stages, targets)
        results = []
        for i, x in enumerate(batched_inputs):
            image_hw = images.image_sizes[i]
            found = find_instances(
                stages[-1].class_logits[i],
                stages[-1].mask_logits[i],
                frame_hw=frame_hw,
                image_hw=image_hw,
                output_hw=(int(x.get("height", image_hw[0])), int(x.get("width", image_hw[1]))),
                max_instances=self.max_instances,
            )
            results.append({"instances": found})
        return results

    def stages(self, images: ImageList) -> list[Stage]:
        """What each stage of the decoder says of normalized images."""
        features = self.backbone(images.tensor)
        return self.sem_seg_head([features[name] for name in self.in_features])

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Normalized images, padded to one size."""
        images = [x["image"].to(self.device) for x in batched_inputs]
        return ImageList.from_tensors(
            [(x - self.pixel_mean) / self.pixel_std for x in images],
            max(self.size_divisibility, self.backbone.size_divisibility),
        )
