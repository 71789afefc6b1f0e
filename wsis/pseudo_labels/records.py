"""Make the prediction record of one image: the instances of a prompted network as plain JSON.

`{"image_id", "file_name", "height", "width", "instances": [{"category_id", "score", "bbox",
"area", "point", "segmentation"}]}`, in pixels of the original image, with the category ids of the
dataset's own file.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from detectron2.structures import Instances
from weaklabels.records import mask_instances

KEEP_UNMATCHED = ("drop", "circle")
DISC_SHARE = 0.02  # radius of the disc of an unmatched point, relative to the shorter side
LEAST_DISC_RADIUS = 3  # pixels


def make_record(
    image: dict[str, Any],
    instances: Instances,
    unmatched: Sequence[dict[str, Any]],
    category_ids: Sequence[int],
    keep_unmatched: str,
) -> dict[str, Any]:
    """The record of one image, with one more key: `unmatched`, its points without a mask.

    Args:
        image: dataset dict; its `annotations` are what prompted the network, in that order.
        instances: on the CPU, in the original image's pixels.
        unmatched: {"instance", "reason"} for each annotation without a mask, and "other" where the
            mask of that annotation suppressed it.
        category_ids: the dataset's category id of each class index.
        keep_unmatched: "drop", or "circle": a small disc with score 0 stands for the instance.
    """
    entries = _instances(image, instances, category_ids)
    lost = []
    for item in unmatched:
        annotation = image["annotations"][item["instance"]]
        category_id = category_ids[annotation["category_id"]]
        point = [float(value) for value in annotation["point"]] if "point" in annotation else None
        lost.append({"category_id": category_id, "point": point, "reason": item["reason"]})
        if "other" in item:
            lost[-1]["other_point"] = image["annotations"][item["other"]].get("point")
        if keep_unmatched == "circle" and point is not None:
            mask = _disc(point, image["height"], image["width"])
            entries += mask_instances(mask[None], [category_id], [0.0], [point])
    return {
        "image_id": image["image_id"],
        "file_name": image["record_file_name"],
        "height": image["height"],
        "width": image["width"],
        "instances": entries,
        "unmatched": lost,
    }


def _instances(
    image: dict[str, Any], instances: Instances, category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    points: list[list[float] | None] = [None] * len(instances)
    if instances.has("pred_points"):
        points = instances.pred_points.double().round(decimals=3).tolist()
        # The exact labeled point, not one rounded by the way through the network's frame.
        for row, index in enumerate(instances.prompt_indices.tolist()):
            labeled = image["annotations"][index].get("point")
            points[row] = [float(value) for value in labeled] if labeled else points[row]
    classes = [category_ids[index] for index in instances.pred_classes.tolist()]
    masks = instances.pred_masks.numpy().astype(np.uint8)
    return mask_instances(masks, classes, instances.scores.tolist(), points)


def _disc(point: Sequence[float], height: int, width: int) -> np.ndarray:
    """(H, W) uint8, 1 around the point (x, y); never empty."""
    radius = max(LEAST_DISC_RADIUS, DISC_SHARE * min(height, width))
    rows, columns = np.ogrid[:height, :width]
    return ((columns - point[0]) ** 2 + (rows - point[1]) ** 2 <= radius**2).astype(np.uint8)
