"""A small random COCO data set with every form of mask, made without the tools under test."""

from typing import Any

import numpy as np
from pycocotools import mask as mask_utils

HEIGHT, WIDTH = 30, 40
CATEGORY_IDS = (3, 7, 20)  # with gaps, as in COCO


def random_mask(rng: np.random.Generator) -> np.ndarray:
    """A rectangle of random place and size, with a hole in every third: (H, W) uint8."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    y, x = int(rng.integers(HEIGHT - 9)), int(rng.integers(WIDTH - 9))
    h, w = rng.integers(5, 10, 2)
    mask[y : y + h, x : x + w] = 1
    if rng.random() < 1 / 3:
        mask[y + 1 : y + h - 1, x + 1 : x + w - 1] = 0
    return mask


def compressed(mask: np.ndarray) -> dict[str, Any]:
    rle = mask_utils.encode(np.asfortranarray(mask))
    return {"size": [int(v) for v in rle["size"]], "counts": rle["counts"].decode()}


def uncompressed(mask: np.ndarray) -> dict[str, Any]:
    counts, value = [0], 0
    for pixel in mask.ravel(order="F").tolist():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return {"size": list(mask.shape), "counts": counts}


def make_coco(num_images: int, seed: int = 0) -> dict[str, Any]:
    """1 to 4 instances an image; every tenth annotation is a crowd; forms of masks take turns."""
    rng = np.random.default_rng(seed)
    images, annotations = [], []
    for image_id in range(101, 101 + num_images):
        name = f"{image_id}.jpg"
        images.append({"id": image_id, "file_name": name, "height": HEIGHT, "width": WIDTH})
        for _ in range(int(rng.integers(1, 5))):
            mask, number = random_mask(rng), len(annotations) + 1
            ys, xs = np.nonzero(mask)
            x0, y0, x1, y1 = (int(v) for v in (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1))
            crowd = int(number % 10 == 0)
            box = [[x0, y0, x1, y0, x1, y1, x0, y1]]
            forms = [compressed(mask), uncompressed(mask), box]
            annotations.append(
                {
                    "id": number * 5,
                    "image_id": image_id,
                    "category_id": int(rng.choice(CATEGORY_IDS, p=(0.6, 0.3, 0.1))),
                    "iscrowd": crowd,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": int(mask.sum()),
                    "segmentation": uncompressed(mask) if crowd else forms[number % 3],
                }
            )
    return {
        "info": {"description": "random"},
        "licenses": [],
        "categories": [{"id": c, "name": f"class {c}"} for c in CATEGORY_IDS],
        "images": images,
        "annotations": annotations,
    }


def decoded(annotation: dict[str, Any]) -> np.ndarray:
    """(H, W) uint8 mask of an annotation by pycocotools."""
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, list) or isinstance(segmentation["counts"], list):
        segmentation = mask_utils.frPyObjects(segmentation, HEIGHT, WIDTH)
    if isinstance(segmentation, list):
        segmentation = mask_utils.merge(segmentation)
    return mask_utils.decode(segmentation)
