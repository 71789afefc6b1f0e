"""Two-stage detectors: a backbone, proposals, and heads that classify and refine them."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from detectron2.config import CfgNode, configurable
from detectron2.modeling.backbone import Backbone, build_backbone
from detectron2.modeling.meta_arch.build import META_ARCH_REGISTRY
from detectron2.modeling.meta_arch.interface import MetaArchitecture
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.modeling.proposal_generator import build_proposal_generator
from detectron2.modeling.roi_heads import build_roi_heads
from detectron2.modeling.test_time_augmentation import GeneralizedRCNNWithTTA
from detectron2.structures import ImageList, Instances
from detectron2.utils.events import get_event_storage
from detectron2.utils.visualizer import Visualizer

MAX_SHOWN_BOXES = 20


@META_ARCH_REGISTRY.register()
class GeneralizedRCNN(MetaArchitecture, nn.Module):
    """A detector with proposals and RoI heads, such as Faster R-CNN and Mask R-CNN.

    It takes a list of dicts, one for each image: `image` (C, H, W); in training `instances` (gt_*
    fields in pixels of the image); without a proposal generator `proposals` (Instances with
    `proposal_boxes` and `objectness_logits`); optionally `height` and `width` of the output.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        proposal_generator: nn.Module | None,
        roi_heads: nn.Module,
        pixel_mean: tuple[float, ...] | list[float],
        pixel_std: tuple[float, ...] | list[float],
        input_format: str | None = None,
        vis_period: int = 0,
    ):
        """
        Args:
            backbone: images -> maps by name.
            proposal_generator: images, maps, ground truth -> proposals, losses; None if the inputs
                have proposals.
            roi_heads: images, maps, proposals, ground truth -> detections, losses.
            pixel_mean, pixel_std: of each channel, to normalize pixels.
            input_format: order of the channels, "RGB" or "BGR"; needed for drawings.
            vis_period: store a drawing every so many iterations; 0: never.
        """
        super().__init__()
        self.backbone = backbone
        self.proposal_generator = proposal_generator
        self.roi_heads = roi_heads
        if vis_period > 0 and input_format is None:
            raise ValueError(f"vis_period={vis_period} needs the input_format to draw images")
        self.input_format = input_format
        self.vis_period = vis_period
        mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (pixel_mean, pixel_std))
        if mean.shape != std.shape:
            raise ValueError(
                f"pixel_mean {pixel_mean} and pixel_std {pixel_std} must be of equal length"
            )
        self.register_buffer("pixel_mean", mean, persistent=False)
        self.register_buffer("pixel_std", std, persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Constructor arguments from `MODEL`, `INPUT.FORMAT` and `VIS_PERIOD`."""
        backbone = build_backbone(cfg)
        shape = backbone.output_shape()
        return {
            "backbone": backbone,
            "proposal_generator": build_proposal_generator(cfg, shape),
            "roi_heads": build_roi_heads(cfg, shape),
            "input_format": cfg.INPUT.FORMAT,
            "vis_period": cfg.VIS_PERIOD,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    num_classes_key = "MODEL.ROI_HEADS.NUM_CLASSES"

    @classmethod
    def check_tta(cls, cfg: CfgNode) -> None:
        if cfg.MODEL.LOAD_PROPOSALS:
            raise ValueError(
                "test-time augmentation does not transform precomputed proposals: set "
                "MODEL.LOAD_PROPOSALS False or TEST.AUG.ENABLED False"
            )

    @classmethod
    def with_tta(cls, cfg: CfgNode, model: nn.Module) -> nn.Module:
        cls.check_tta(cfg)
        return GeneralizedRCNNWithTTA(cfg, model)

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict]:
        """Losses in training, else one result for each input; see `inference`."""
        if not self.training:
            return self.inference(batched_inputs)
        truth = [x["instances"].to(self.device) for x in batched_inputs if "instances" in x] or None
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        proposals, losses = self._propose(batched_inputs, images, features, truth)
        losses = self.roi_heads(images, features, proposals, truth)[1] | losses
        if self.vis_period > 0 and get_event_storage().iter % self.vis_period == 0:
            self.visualize_training(batched_inputs, proposals)
        return losses

    def inference(
        self,
        batched_inputs: list[dict[str, Any]],
        detected_instances: list[Instances] | None = None,
        do_postprocess: bool = True,
    ) -> list[dict[str, Instances]] | list[Instances]:
        """Detect objects, or complete given detections.

        Args:
            detected_instances: of each image, `pred_boxes` and `pred_classes` in pixels of the
                network's input. Only the other outputs are computed.
            do_postprocess: rescale results to the wanted output sizes. Otherwise they stay in the
                frame of the network's input, and masks stay (N, 1, M, M) relative to the boxes.

        Returns:
            a list of {"instances": Instances}, or of Instances without postprocessing, with
            `pred_boxes`, `scores`, `pred_classes` and, with a mask head, `pred_masks` (N, H, W).
        """
        if self.training:
            raise ValueError("inference needs the model in evaluation mode: call `eval()` first")
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        if detected_instances is not None:
            boxes = [own.to(self.device) for own in detected_instances]
            detections = self.roi_heads.forward_with_given_boxes(features, boxes)
        else:
            proposals, _ = self._propose(batched_inputs, images, features, None)
            detections, _ = self.roi_heads(images, features, proposals, None)
        if do_postprocess:
            return self._postprocess(detections, batched_inputs, images.image_sizes)
        return detections

    def _propose(
        self,
        batched_inputs: list[dict[str, Any]],
        images: ImageList,
        features: dict[str, Tensor],
        gt_instances: list[Instances] | None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Proposals from the generator or from the inputs, and losses."""
        if self.proposal_generator is not None:
            return self.proposal_generator(images, features, gt_instances)
        for x in batched_inputs:
            if "proposals" not in x:
                raise ValueError(
                    f"the input for {x.get('file_name', 'an image')} has no 'proposals': set "
                    "MODEL.LOAD_PROPOSALS True and DATASETS.PROPOSAL_FILES_*"
                )
        return [x["proposals"].to(self.device) for x in batched_inputs], {}

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Normalized images, padded to one size that the backbone can take."""
        images = [x["image"].to(self.device) for x in batched_inputs]
        return ImageList.from_tensors(
            [(x - self.pixel_mean) / self.pixel_std for x in images],
            self.backbone.size_divisibility,
        )

    @staticmethod
    def _postprocess(
        instances: list[Instances],
        batched_inputs: list[dict[str, Any]],
        image_sizes: list[tuple[int, int]],
    ) -> list[dict[str, Instances]]:
        """Results at the wanted output sizes."""
        results = []
        for own, x, size in zip(instances, batched_inputs, image_sizes, strict=True):
            height, width = x.get("height", size[0]), x.get("width", size[1])
            results.append({"instances": detector_postprocess(own, height, width)})
        return results

    def visualize_training(
        self, batched_inputs: list[dict[str, Any]], proposals: list[Instances]
    ) -> None:
        """Store a drawing of the first image: ground truth at the left, proposals at the right.

        Args:
            batched_inputs: with `instances`.
            proposals: of each image, best first, with `proposal_boxes`.
        """
        first = batched_inputs[0]
        image = first["image"].permute(1, 2, 0).cpu().numpy().astype(np.uint8)
        if self.input_format == "BGR":
            image = image[:, :, ::-1]
        boxes = [first["instances"].gt_boxes, proposals[0].proposal_boxes[:MAX_SHOWN_BOXES]]
        drawings = [
            Visualizer(image).overlay_instances(boxes=own.tensor.cpu().numpy()).get_image()
            for own in boxes
        ]
        name = "Left: GT bounding boxes;  Right: Predicted proposals"
        picture = np.concatenate(drawings, axis=1).transpose(2, 0, 1)
        get_event_storage().put_image(name, picture)
