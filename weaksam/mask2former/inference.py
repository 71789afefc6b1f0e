"""From classes and masks of queries to instances of one image."""

import torch
from torch import Tensor
from torch.nn import functional as F

from detectron2.modeling.postprocessing import sem_seg_postprocess
from detectron2.structures import BitMasks, Instances

__all__ = ["find_instances"]

# Queries whose masks are enlarged at once, to bound memory: 16 x 1333 x 1333 floats are 114 MB.
QUERIES_AT_ONCE = 16
EPSILON = 1e-6  # of a mask's area, in pixels


def find_instances(
    class_logits: Tensor,
    mask_logits: Tensor,
    *,
    frame_hw: tuple[int, int],
    image_hw: tuple[int, int],
    output_hw: tuple[int, int],
    max_instances: int,
) -> Instances:
    """The best pairs of query and class, each with the query's mask.

    A score is the class's probability times the mean probability of the mask's pixels; a pixel
    belongs to the mask where its logit is above 0. Instances without a pixel are left out.

    Args:
        class_logits: (Q, K + 1), the last one for no object.
        mask_logits: (Q, h, w) over the frame.
        frame_hw: height and width of the padded batch.
        image_hw: of the image in it, at the left and top.
        output_hw: of the result.
        max_instances: how many pairs to take; a query may occur with several classes.

    Returns:
        `pred_masks` (N, H, W) bool, `pred_boxes` (tight), `scores`, `pred_classes`; best first.
    """
    probabilities = class_logits.float().softmax(dim=-1)[:, :-1]
    num_classes = probabilities.shape[1]
    best = probabilities.flatten().topk(min(max_instances, probabilities.numel()))
    queries, classes = best.indices // num_classes, best.indices % num_classes

    used, position = queries.unique(return_inverse=True)
    masks, certainties = [], []
    for logits in mask_logits[used].float().split(QUERIES_AT_ONCE):
        large = F.interpolate(logits[None], size=frame_hw, mode="bilinear", align_corners=False)[0]
        large = sem_seg_postprocess(large, image_hw, *output_hw)
        inside = large > 0
        masks.append(inside)
        certainty = (large.sigmoid() * inside).sum((1, 2)) / (inside.sum((1, 2)) + EPSILON)
        certainties.append(certainty)
    masks = torch.cat(masks)[position]
    scores = best.values * torch.cat(certainties)[position]
    order = scores.argsort(descending=True, stable=True)
    order = order[masks.flatten(1).any(dim=1)[order]]
    masks = BitMasks(masks[order])
    return Instances(
        output_hw,
        pred_masks=masks.tensor,
        pred_boxes=masks.get_bounding_boxes(),
        scores=scores[order],
        pred_classes=classes[order],
    )
