"""Rescale the results of a network from the size of its input to the wanted size."""

from torch import Tensor
from torch.nn import functional as F

from detectron2.layers import paste_masks_in_image
from detectron2.structures import Instances, ROIMasks


def detector_postprocess(
    results: Instances, output_height: int, output_width: int, mask_threshold: float = 0.5
) -> Instances:
    """Detections at another image size; `results` is not changed.

    Boxes are scaled and clipped. Detections whose box becomes empty are dropped.

    Args:
        results: detections at `results.image_size`, with `pred_boxes` or `proposal_boxes`, and
            optionally `pred_masks`: probabilities in each box, (N, 1, M, M) or `ROIMasks`.
        output_height, output_width: size in pixels of the new frame.
        mask_threshold: probability from which on a pixel is foreground.

    Returns:
        Detections at (output_height, output_width); `pred_masks` is (N, height, width) bool.
    """
    field = next((name for name in ("pred_boxes", "proposal_boxes") if results.has(name)), None)
    if field is None:
        raise ValueError(
            "detector_postprocess needs pred_boxes or proposal_boxes; the results have "
            f"{sorted(results.get_fields())}"
        )
    old_height, old_width = results.image_size
    scale_x, scale_y = output_width / old_width, output_height / old_height
    new_size = (int(output_height), int(output_width))
    results = Instances(new_size, **results.get_fields())
    boxes = results.get(field).clone()
    boxes.scale(scale_x, scale_y)
    boxes.clip(new_size)
    results.set(field, boxes)
    results = results[boxes.nonempty()]
    if results.has("pred_masks"):
        masks = results.pred_masks
        masks = masks.tensor if isinstance(masks, ROIMasks) else masks[:, 0]
        results.pred_masks = paste_masks_in_image(
            masks, results.get(field), new_size, threshold=mask_threshold
        )
    return results


def sem_seg_postprocess(
    result: Tensor, img_size: tuple[int, int], output_height: int, output_width: int
) -> Tensor:
    """Scores without their padding, resized: (C, H, W) -> (C, output_height, output_width).

    Args:
        result: scores of each class over the padded image.
        img_size: height and width of the image before it was padded.
    """
    height, width = img_size
    unpadded = result[:, :height, :width].unsqueeze(0)
    size = (output_height, output_width)
    return F.interpolate(unpadded, size=size, mode="bilinear", align_corners=False)[0]
