"""Base of the second stages: label proposals and sample those to train on."""

from typing import Any

import torch
from torch import Tensor, nn

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.matcher import MATCHERS, Matcher
from detectron2.modeling.proposal_generator.proposal_utils import add_ground_truth_to_proposals
from detectron2.modeling.sampling import IGNORED, subsample_labels
from detectron2.structures import ImageList, Instances, pairwise_iou
from detectron2.utils.events import get_event_storage
from detectron2.utils.registry import Registry

# Subclasses of ROIHeads, called as f(cfg, input_shape: dict[str, ShapeSpec]).
ROI_HEADS_REGISTRY = Registry("ROI_HEADS")

Features = dict[str, Tensor]  # maps (N, C, H, W) by name
Output = tuple[list[Instances], dict[str, Tensor]]  # detections and losses


def build_roi_heads(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> "ROIHeads":
    """RoI heads `cfg.MODEL.ROI_HEADS.NAME` for a backbone of this output."""
    return ROI_HEADS_REGISTRY.get(cfg.MODEL.ROI_HEADS.NAME)(cfg, input_shape)


def select_foreground_proposals(
    proposals: list[Instances], bg_label: int
) -> tuple[list[Instances], list[Tensor]]:
    """Foreground proposals of each image, and (R,) bool masks that select them.

    Args:
        proposals: of each image, with `gt_classes`: `bg_label` for background, -1 for ignored.
    """
    if not isinstance(proposals, list | tuple) or not all(p.has("gt_classes") for p in proposals):
        raise ValueError("expected a list of Instances that have gt_classes")
    masks = [(p.gt_classes != -1) & (p.gt_classes != bg_label) for p in proposals]
    return [p[mask] for p, mask in zip(proposals, masks, strict=True)], masks


class ROIHeads(nn.Module):
    """Base of all RoI heads: label proposals and sample those to train on.

    A subclass defines `forward(images, features, proposals, targets=None)`, which returns the
    detections of each image and a dict of losses.
    """

    @configurable
    def __init__(
        self,
        *,
        num_classes: int,
        batch_size_per_image: int,
        positive_fraction: float,
        proposal_matcher: Matcher,
        proposal_append_gt: bool = True,
    ):
        """
        Args:
            num_classes: K, without the background.
            batch_size_per_image: proposals to sample in training.
            positive_fraction: largest part of these that may be foreground.
            proposal_matcher: labels proposals by their IoU with the ground truth.
            proposal_append_gt: also sample from the ground-truth boxes.
        """
        super().__init__()
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction
        self.num_classes = num_classes
        self.proposal_matcher = proposal_matcher
        self.proposal_append_gt = proposal_append_gt

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Constructor arguments from `MODEL.ROI_HEADS`."""
        node = cfg.MODEL.ROI_HEADS
        if node.MATCHER not in MATCHERS:
            raise ValueError(
                f"MODEL.ROI_HEADS.MATCHER={node.MATCHER!r}; expected one of {list(MATCHERS)}"
            )
        return {
            "batch_size_per_image": node.BATCH_SIZE_PER_IMAGE,
            "positive_fraction": node.POSITIVE_FRACTION,
            "num_classes": node.NUM_CLASSES,
            "proposal_append_gt": node.PROPOSAL_APPEND_GT,
            "proposal_matcher": MATCHERS[node.MATCHER](node.IOU_THRESHOLDS, node.IOU_LABELS),
        }

    @torch.no_grad()
    def label_and_sample_proposals(
        self, proposals: list[Instances], targets: list[Instances]
    ) -> list[Instances]:
        """A random sample of each image's proposals, with training targets.

        Args:
            proposals: of each image, with `proposal_boxes` and `objectness_logits`.
            targets: of each image, with `gt_boxes`, `gt_classes` and any other `gt_*` fields.

        Returns:
            proposals with `gt_classes` (K for background), foreground first. If the image has
            ground truth, they also have the other `gt_*` fields of their matches, which are
            meaningless for background.
        """
        if self.proposal_append_gt:
            proposals = add_ground_truth_to_proposals(targets, proposals)
        sampled = [
            self._sample_image(own_proposals, own_targets)
            for own_proposals, own_targets in zip(proposals, targets, strict=True)
        ]
        counts = [(len(x), int((x.gt_classes == self.num_classes).sum())) for x in sampled]
        storage, num_images = get_event_storage(), max(len(sampled), 1)
        foreground = sum(total - background for total, background in counts)
        storage.put_scalar("roi_head/num_fg_samples", foreground / num_images)
        storage.put_scalar("roi_head/num_bg_samples", sum(b for _, b in counts) / num_images)
        return sampled

    def _sample_image(self, proposals: Instances, targets: Instances) -> Instances:
        quality = pairwise_iou(targets.gt_boxes, proposals.proposal_boxes)
        matches, labels = self.proposal_matcher(quality)
        index, classes = self._sample_proposals(matches, labels, targets.gt_classes)
        sample = proposals[index]
        sample.gt_classes = classes
        if len(targets) == 0:
            return sample
        given = {n: v for n, v in targets.get_fields().items() if n.startswith("gt_")}
        truth = {name: values[matches[index]] for name, values in given.items()}
        return Instances(sample.image_size, **(truth | sample.get_fields()))

    def _sample_proposals(
        self, matched_idxs: Tensor, matched_labels: Tensor, gt_classes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Indices (S,) of a sample of N proposals, and their classes.

        Args:
            matched_idxs, matched_labels: (N,), see `Matcher`.
            gt_classes: (M,) of the ground truth.
        """
        classes = torch.full_like(matched_idxs, self.num_classes)
        if len(gt_classes) > 0:
            is_foreground, is_ignored = matched_labels == 1, matched_labels == IGNORED
            classes[is_foreground] = gt_classes[matched_idxs[is_foreground]]
            classes[is_ignored] = IGNORED
        index = torch.cat(
            subsample_labels(
                classes, self.batch_size_per_image, self.positive_fraction, self.num_classes
            )
        )
        return index, classes[index]

    def forward(
        self,
        images: ImageList,
        features: Features,
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> Output:
        """Detections of each image and losses; see the class."""
        raise NotImplementedError(f"{type(self).__name__} must define `forward`")

    def _sampled(
        self, proposals: list[Instances], targets: list[Instances] | None
    ) -> list[Instances]:
        if targets is None:
            raise ValueError("training RoI heads needs 'instances' in every input")
        return self.label_and_sample_proposals(proposals, targets)
