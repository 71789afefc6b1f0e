"""Make the shapes dataset: small synthetic scenes in COCO layout, for trying everything at once.

FOLDER/{train,val}/*.jpg and FOLDER/annotations/instances_{train,val}.json. The same seed gives the
same files (for one version of NumPy and OpenCV), and image i does not depend on how many images are
asked for.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from weaklabels.files import write_json
from weaklabels.masks import encode_mask, mask_fields, run_lengths
from weaklabels.shapes.scene import CLASSES, Item, draw_scene

SPLITS = ("train", "val")
SPLIT_ID_STEP = 10_000_000  # image ids of a split start here, so that no id is in two splits
JPEG_QUALITY = 95
MIN_SIZE = 64


def make_annotation(item: Item) -> dict[str, Any]:
    """COCO fields of one item, without ids: a polygon where that is exact, RLE elsewhere.

    Whole shapes without a hole become polygons; cut, covered or pierced ones become compressed
    RLE; crowds become uncompressed RLE, as in COCO.
    """
    height, width = item.visible.shape
    whole = len(item.contours) == 1 and int(item.visible.sum()) == item.area
    if whole:
        (outline,) = item.contours
        whole = bool((outline >= 0).all() and (outline <= (width, height)).all())
    if whole:
        outline = np.round(outline, 2)
        (x0, y0), (x1, y1) = outline.min(axis=0), outline.max(axis=0)
        bbox, area = [x0, y0, x1 - x0, y1 - y0], cv2.contourArea(outline.astype(np.float32))
        segmentation: Any = [outline.reshape(-1).tolist()]
    else:
        segmentation = encode_mask(item.visible)
        fields = mask_fields(segmentation)
        bbox, area = fields["bbox"], fields["area"]
        if item.crowd:
            segmentation["counts"] = run_lengths(segmentation["counts"]).tolist()
    return {
        "category_id": item.class_index + 1,
        "iscrowd": int(item.crowd),
        "bbox": [round(float(v), 2) for v in bbox],
        "area": round(float(area), 2),
        "segmentation": segmentation,
    }


def make_split(folder: Path, split: str, count: int, size: int, seed: int) -> dict[str, Any]:
    """Write the images of one split; returns the content of its annotation file."""
    (folder / split).mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image, items in tqdm(_scenes(split, count, size, seed), split, count, unit="image"):
        image_id = SPLITS.index(split) * SPLIT_ID_STEP + len(images) + 1
        file_name = f"{image_id:012d}.jpg"
        path = folder / split / file_name
        if not cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]):
            raise OSError(f"{path}: could not be written; is the disk full or read-only?")
        height, width = image.shape[:2]
        images.append({"id": image_id, "file_name": file_name, "height": height, "width": width})
        for item in items:
            ids = {"id": len(annotations) + 1, "image_id": image_id}
            annotations.append(ids | make_annotation(item))
    return {
        "info": {"description": f"shapes {split}: {count} scenes, size {size}, seed {seed}"},
        "licenses": [],
        "categories": [
            {"id": i, "name": name, "supercategory": "shape"} for i, name in enumerate(CLASSES, 1)
        ],
        "images": images,
        "annotations": annotations,
    }


def _scenes(
    split: str, count: int, size: int, seed: int
) -> Iterator[tuple[np.ndarray, list[Item]]]:
    for index in range(count):
        scene = draw_scene(np.random.default_rng([seed, SPLITS.index(split), index]), size)
        yield scene.image, scene.items


def make_shapes(
    folder: Path, train: int = 400, val: int = 100, size: int = 160, seed: int = 0
) -> dict[Path, int]:
    """Write the whole dataset; an annotation file appears when its images are all there.

    Args:
        train, val: numbers of images.
        size: longer side, pixels.

    Returns:
        each annotation file and its number of annotations.

    Raises:
        ValueError: a number is out of range; nothing is written.
    """
    for name, value, least in (("train", train, 1), ("val", val, 1), ("size", size, MIN_SIZE)):
        if value < least:
            raise ValueError(f"--{name} {value}: must be {least} or more")
    if seed < 0:
        raise ValueError(f"--seed {seed}: must be 0 or more")
    if max(train, val) >= SPLIT_ID_STEP:
        raise ValueError(f"--train and --val must be below {SPLIT_ID_STEP}")
    written = {}
    for split, count in zip(SPLITS, (train, val), strict=True):
        content = make_split(folder, split, count, size, seed)
        path = folder / "annotations" / f"instances_{split}.json"
        write_json(path, content)
        written[path] = len(content["annotations"])
    return written
