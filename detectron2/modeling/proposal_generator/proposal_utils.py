"""Choose proposals among scored boxes, and add the ground truth to them."""

import math

import torch
from torch import Tensor

from detectron2.layers import batched_nms
from detectron2.structures import Boxes, Instances

# Objectness of the ground truth: the logit of a probability of nearly 1.
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
    """The best boxes of each image: top scores of each level, clipped, after NMS.

    Args:
        proposals: for each level (N, A, 4) boxes in input pixels.
        pred_objectness_logits: for each level (N, A).
        image_sizes: (height, width) of each image.
        nms_thresh: drop a box if a better one of its level overlaps it by a larger IoU.
        pre_nms_topk: boxes to keep of each level and image before NMS.
        post_nms_topk: boxes to keep of each image after NMS, over all levels.
        min_box_size: keep boxes whose sides, after clipping, are longer than this, in pixels.
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
                    "training has diverged: some proposals are infinite or NaN. Lower "
                    "SOLVER.BASE_LR, increase SOLVER.WARMUP_ITERS, or clip gradients "
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
    """The smaller number; in a trace, `count` is a tensor and stays one."""
    return count.clamp(max=limit) if isinstance(count, Tensor) else min(count, limit)


def add_ground_truth_to_proposals(
    gt: list[Instances] | list[Boxes], proposals: list[Instances]
) -> list[Instances]:
    """Proposals of each image, followed by its ground-truth boxes.

    Args:
        gt: for each image, Instances with `gt_boxes`, or just the boxes.
        proposals: for each image, Instances with `proposal_boxes` and `objectness_logits`; `gt`
            must have all their other fields.
    """
    if len(proposals) != len(gt):
        raise ValueError(f"got proposals of {len(proposals)} images, ground truth of {len(gt)}")
    return [_append(own_gt, own) for own_gt, own in zip(gt, proposals, strict=True)]


def _append(gt: Instances | Boxes, proposals: Instances) -> Instances:
    fields = {"gt_boxes": gt} if isinstance(gt, Boxes) else gt.get_fields()
    boxes, logits = fields["gt_boxes"], proposals.objectness_logits
    fields = fields | {
        "proposal_boxes": boxes,
        "objectness_logits": logits.new_full((len(boxes),), GROUND_TRUTH_LOGIT),
    }
    missing = [name for name in proposals.get_fields() if name not in fields]
    if missing:
        # Upstream parity: callers expect an AssertionError here.
        raise AssertionError(
            f"cannot append the ground truth to the proposals: it lacks their fields {missing}"
        )
    return Instances.cat([proposals, Instances(proposals.image_size, **fields)])
