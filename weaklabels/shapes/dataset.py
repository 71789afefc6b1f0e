"""Make the shapes data set: small synthetic scenes in COCO layout, for trying everything at once.

    python tools/make_shapes.py datasets/shapes --train 400 --val 100

writes OUT/{train,val}/*.jpg and OUT/annotations/instances_{train,val}.json. The same seed gives
the same files (for one version of numpy and OpenCV), and image i does not depend on how many
images are asked for.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as mask_utils
from tqdm import tqdm

from weaklabels.files import write_json
from weaklabels.shapes.scene import CLASSES, Item, draw_scene

SPLITS = ("train", "val")
SPLIT_ID_STEP = 10_000_000  # image ids of a split start here, so that no id is in two splits
JPEG_QUALITY = 95
MIN_SIZE = 64


def make_annotation(item: Item) -> dict[str, Any]:
    """COCO fields of one item, without ids: a polygon where that is exact, RLE elsewhere.

    Whole forms without a hole become polygons; cut, covered or pierced ones become compressed
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
        rle = mask_utils.encode(np.asfortranarray(item.visible, dtype=np.uint8))
        bbox, area = mask_utils.toBbox(rle).tolist(), float(mask_utils.area(rle))
        counts = rle["counts"].decode() if not item.crowd else _run_lengths(item.visible)
        segmentation = {"size": [height, width], "counts": counts}
    return {
        "category_id": item.class_index + 1,
        "iscrowd": int(item.crowd),
        "bbox": [round(float(v), 2) for v in bbox],
        "area": round(float(area), 2),
        "segmentation": segmentation,
    }


def _run_lengths(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed RLE: lengths of runs down the columns, beginning with zeros."""
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    return [0, *runs] if flat[0] else runs


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


def make_shapes(folder: Path, train: int, val: int, size: int, seed: int) -> None:
    """Write the whole data set; each annotation file appears when its images are all there."""
    for split, count in zip(SPLITS, (train, val), strict=True):
        content = make_split(folder, split, count, size, seed)
        path = folder / "annotations" / f"instances_{split}.json"
        write_json(path, content)
        print(f"{path}: {count} images, {len(content['annotations'])} annotations")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder to write, made where it is missing")
    parser.add_argument("--train", type=int, default=400, help="training images")
    parser.add_argument("--val", type=int, default=100, help="validation images")
    parser.add_argument("--size", type=int, default=160, help="longer side in pixels")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    for name, least in (("train", 1), ("val", 1), ("size", MIN_SIZE), ("seed", 0)):
        if getattr(args, name) < least:
            parser.error(f"--{name} {getattr(args, name)}: must be {least} or more")
    if max(args.train, args.val) >= SPLIT_ID_STEP:
        parser.error(f"--train and --val must be below {SPLIT_ID_STEP}")
    make_shapes(args.out, args.train, args.val, args.size, args.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
