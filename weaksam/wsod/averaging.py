"""Test a weak detector on several versions of an image: average what each says of a proposal."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from detectron2.config import CfgNode
from detectron2.data.transforms import Transform
from detectron2.modeling.test_time_augmentation import DatasetMapperTTA
from detectron2.structures import Boxes, Instances

__all__ = ["AveragedProposals"]


class AveragedProposals(nn.Module):
    """A `WeakRCNN` that is called as before and sees each image in the sizes of `TEST.AUG`.

    Boxes, brought back to the frame of the output, and class probabilities of a proposal are
    averaged over the versions; NMS comes last (SPEC_WEAKSAM 8.4).
    """

    def __init__(
        self,
        cfg: CfgNode,
        model: nn.Module,
        tta_mapper: Callable[[dict], list[dict]] | None = None,
    ):
        super().__init__()
        self.model = model.module if isinstance(model, DistributedDataParallel) else model
        self.tta_mapper = DatasetMapperTTA(cfg) if tta_mapper is None else tta_mapper

    def __call__(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        return [{"instances": self._one_image(x)} for x in batched_inputs]

    @torch.no_grad()
    def _one_image(self, inputs: dict[str, Any]) -> Instances:
        height, width = inputs["image"].shape[1:]
        inputs = {"height": height, "width": width} | inputs
        size_hw = (inputs["height"], inputs["width"])
        # Proposals belong to the frame of `image`; each version's transforms start at the output's.
        scale = torch.tensor([size_hw[1] / width, size_hw[0] / height] * 2)
        original = inputs["proposals"].proposal_boxes.tensor * scale
        total_boxes, total_scores = 0.0, 0.0
        versions = self.tta_mapper({k: v for k, v in inputs.items() if k != "proposals"})
        for version in versions:
            transform = version.pop("transforms")
            moved = Instances(
                tuple(version["image"].shape[1:]),
                proposal_boxes=Boxes(apply_box(transform, original)),
                objectness_logits=inputs["proposals"].objectness_logits,
            )
            ((boxes, scores),) = self.model.predict_proposals([version | {"proposals": moved}])
            back = apply_box(transform.inverse(), boxes.reshape(-1, 4)).reshape(boxes.shape)
            total_boxes, total_scores = total_boxes + back, total_scores + scores
        count = len(versions)
        return self.model.roi_heads.detections(total_boxes / count, total_scores / count, size_hw)


def apply_box(transform: Transform, boxes: Tensor) -> Tensor:
    """(N, 4) boxes after a transform."""
    moved = transform.apply_box(boxes.detach().cpu().numpy())
    return torch.from_numpy(np.ascontiguousarray(moved)).to(boxes)
