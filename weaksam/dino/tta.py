"""Test DINO on several sizes and flips of an image, and join what it finds."""

from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from detectron2.config import CfgNode
from detectron2.layers import batched_nms
from detectron2.modeling.test_time_augmentation import DatasetMapperTTA
from detectron2.structures import Boxes, Instances
from weaksam.wsod.averaging import apply_box

__all__ = ["DinoWithTTA"]


class DinoWithTTA(nn.Module):
    """A `DINO` that is called as before and sees each image in the versions of `TEST.AUG`.

    The detections of all versions, in the frame of the output, pass one NMS for each class.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module):
        super().__init__()
        self.model = model.module if isinstance(model, DistributedDataParallel) else model
        self.tta_mapper = DatasetMapperTTA(cfg)
        self.nms_threshold = cfg.MODEL.DINO.NMS_THRESH_TTA
        self.max_detections = cfg.TEST.DETECTIONS_PER_IMAGE

    def __call__(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        return [{"instances": self._one_image(x)} for x in batched_inputs]

    @torch.no_grad()
    def _one_image(self, inputs: dict[str, Any]) -> Instances:
        height, width = inputs["image"].shape[1:]
        inputs = {"height": height, "width": width} | inputs
        found = []
        for version in self.tta_mapper(inputs):
            back = version.pop("transforms").inverse()
            (own,) = self.model.inference([version], do_postprocess=False)
            tensor = apply_box(back, own.pred_boxes.tensor)
            fields = {"scores": own.scores, "pred_classes": own.pred_classes}
            size_hw = (inputs["height"], inputs["width"])
            found.append(Instances(size_hw, pred_boxes=Boxes(tensor), **fields))
        joined = Instances.cat(found)
        joined.pred_boxes.clip(joined.image_size)
        joined = joined[joined.pred_boxes.nonempty()]
        keep = batched_nms(
            joined.pred_boxes.tensor, joined.scores, joined.pred_classes, self.nms_threshold
        )
        return joined[keep[: self.max_detections]]
