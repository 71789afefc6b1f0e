"""Choose proposals among scored boxes, and add the ground truth to them."""

import math

import torch
from torch import Tensor

from detectron2.layers import batched_nms
from detectron2.structures import Boxes, Instances

__all__ = [
    "add_ground_truth_to_proposals",
    "add_ground_truth_to_proposals_single_image",
    "find_top_rpn_proposals",
]

# The logit of a probability of nearly 1: what the ground truth gets as its objectness.
GROUND_TRUTH_PROBABILITY = 1.0 - 1e-10
GROUND_TRUTH_LOGIT = math.log(GROUND_TRUTH_PROBABILITY / (1 - GROUND_TRUTH_PROBABILITY))


def find_top_rpn_proposals(
    proposals: list[Tensor],
    pred_objectness_logits: list[Tensor],
    image_sizes: list[tuple[int, int]],
    nms_thresh: float,
    pre_nms_topk: int,
    post_nms_topk: int,
    min_box_size: float,
    training: bool,
) -> list[Instances]:
    """The best boxes of each image: the best of each level, those clipped and thinned by NMS.

    Args:
        proposals: for each level (N, A, 4) boxes in input pixels.
        pred_objectness_logits: for each level (N, A).
        image_sizes: (height, width) of each image.
        nms_thresh: a box goes if a better one of its level overlaps it by more (IoU).
        pre_nms_topk: boxes that are kept of each level and image before NMS.
        post_nms_topk: boxes that are kept of each image after NMS, over all levels.
        min_box_size: boxes are kept whose sides, in the image, are longer than this, in pixels.
        training: raise FloatingPointError if a prediction is infinite or NaN; otherwise drop it.

    Returns:
        for each image Instances with `proposal_boxes` and `objectness_logits`, best first.
    """
    top_scores, top_boxes, levels = [], [], []
    for level, (boxes, logits) in enumerate(zip(proposals, pred_objectness_logits, strict=True)):
        scores, index = logits.topk(_at_most(logits.shape[1], pre_nms_topk), dim=1)
        top_scores.append(scores)
        top_boxes.append(boxes.gather(1, index[:, :, None].expand(-1, -1, boxes.shape[2])))
        levels.append(torch.full_like(index[0], level))
    all_scores, all_boxes = torch.cat(top_scores, dim=1), torch.cat(top_boxes, dim=1)
    all_levels = torch.cat(levels)

    results = []
    for i, image_size in enumerate(image_sizes):
        coordinates, scores, own_levels = all_boxes[i], all_scores[i], all_levels
        finite = torch.isfinite(coordinates).all(dim=1) & torch.isfinite(scores)
        if not finite.all():
            if training:
                raise FloatingPointError(
                    "predicted proposals are infinite or NaN: the training has diverged. Lower "
                    "SOLVER.BASE_LR, lengthen SOLVER.WARMUP_ITERS, or clip gradients "
                    "(SOLVER.CLIP_GRADIENTS)"
                )
            coordinates, scores = coordinates[finite], scores[finite]
            own_levels = own_levels[finite]
        boxes = Boxes(coordinates)
        boxes.clip(image_size)
        kept = boxes.nonempty(threshold=min_box_size)
        boxes, scores, own_levels = boxes[kept], scores[kept], own_levels[kept]
        kept = batched_nms(boxes.tensor, scores, own_levels, nms_thresh)[:post_nms_topk]
        results.append(
            Instances(image_size, proposal_boxes=boxes[kept], objectness_logits=scores[kept])
        )
    return results


def _at_most(count: int, limit: int) -> int:
    """The smaller number; `count` is a tensor while a function is traced, and stays one."""
    return count.clamp(max=limit) if isinstance(count, Tensor) else min(count, limit)


def add_ground_truth_to_proposals(
    gt: list[Instances] | list[Boxes], proposals: list[Instances]
) -> list[Instances]:
    """Proposals of each image, followed by its ground-truth boxes.

    Args:
        gt: for each image, Instances with `gt_boxes`, or the boxes alone.
        proposals: for each image Instances with `proposal_boxes` and `objectness_logits`; any other
            field must be one of `gt` too.
    """
    if len(proposals) != len(gt):
        raise ValueError(f"got proposals of {len(proposals)} images, ground truth of {len(gt)}")
    return [
        add_ground_truth_to_proposals_single_image(own_gt, own_proposals)
        for own_gt, own_proposals in zip(gt, proposals, strict=True)
    ]


def add_ground_truth_to_proposals_single_image(
    gt: Instances | Boxes, proposals: Instances
) -> Instances:
    """`add_ground_truth_to_proposals` for one image."""
    fields = {"gt_boxes": gt} if isinstance(gt, Boxes) else gt.get_fields()
    boxes = fields["gt_boxes"]
    logits = proposals.objectness_logits
    added = Instances(proposals.image_size, **fields)
    added.proposal_boxes = boxes
    added.objectness_logits = logits.new_full((len(boxes),), GROUND_TRUTH_LOGIT)
    missing = [name for name in proposals.get_fields() if not added.has(name)]
    if missing:
        # Upstream parity: an AssertionError is what callers expect here.
        raise AssertionError(
            f"the proposals have the fields {missing}, the ground truth has not: it cannot be "
            "added to them"
        )
    return Instances.cat([proposals, added])
