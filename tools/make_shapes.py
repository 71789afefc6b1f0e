"""Make the shapes data set: small synthetic scenes in COCO layout, for trying everything at once.

    python tools/make_shapes.py datasets/shapes --train 400 --val 100

writes OUT/{train,val}/*.jpg and OUT/annotations/instances_{train,val}.json. The same seed gives
the same files (for one version of numpy and OpenCV), and image i does not depend on how many
images are asked for. With --max-forms 4 --classes-per-image 2 an image's tags alone say enough for
a small network to learn the classes from; default scenes hold almost three of the seven classes.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: the folder above holds the `tools` package
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import numpy as np
from pycocotools import mask as mask_utils
from tqdm import tqdm

from tools.coco_files import write_json
from tools.shapes_scene import CLASSES, MAX_FORMS, Item, draw_scene

SPLITS = ("train", "val")
SPLIT_ID_STEP = 10_000_000  # image ids of a split start here, so that no id is in two splits
JPEG_QUALITY = 95
MIN_SIZE = 64


@dataclass(frozen=True)
class Scenes:
    """What the scenes of a data set are like.

    size: longer side in pixels.  max_forms: forms in a scene at most.
    classes_per_image: classes in a scene at most; None: any number.
    """

    size: int
    seed: int
    max_forms: int
    classes_per_image: int | None

    def __str__(self) -> str:
        text = f"size {self.size}, seed {self.seed}"
        if self.max_forms != MAX_FORMS:
            text += f", at most {self.max_forms} forms"
        if self.classes_per_image is not None:
            text += f", at most {self.classes_per_image} classes an image"
        return text


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


def make_split(folder: Path, split: str, count: int, scenes: Scenes) -> dict[str, Any]:
    """Write the images of one split; returns the content of its annotation file."""
    (folder / split).mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image, items in tqdm(_draw(split, count, scenes), split, count, unit="image"):
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
        "info": {"description": f"shapes {split}: {count} scenes, {scenes}"},
        "licenses": [],
        "categories": [
            {"id": i, "name": name, "supercategory": "shape"} for i, name in enumerate(CLASSES, 1)
        ],
        "images": images,
        "annotations": annotations,
    }


def _draw(split: str, count: int, scenes: Scenes) -> Iterator[tuple[np.ndarray, list[Item]]]:
    for index in range(count):
        rng = np.random.default_rng([scenes.seed, SPLITS.index(split), index])
        scene = draw_scene(rng, scenes.size, scenes.max_forms, scenes.classes_per_image)
        yield scene.image, scene.items


def make_shapes(
    folder: Path,
    train: int,
    val: int,
    size: int,
    seed: int,
    max_forms: int = MAX_FORMS,
    classes_per_image: int | None = None,
) -> None:
    """Write the whole data set; each annotation file appears when its images are all there."""
    scenes = Scenes(size, seed, max_forms, classes_per_image)
    for split, count in zip(SPLITS, (train, val), strict=True):
        content = make_split(folder, split, count, scenes)
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
    parser.add_argument("--max-forms", type=int, default=MAX_FORMS, help="forms in a scene at most")
    parser.add_argument(
        "--classes-per-image", type=int, help="classes in a scene at most (default: any number)"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    limits = {"train": 1, "val": 1, "size": MIN_SIZE, "seed": 0, "max_forms": 1}
    for name, least in limits.items():
        if getattr(args, name) < least:
            flag = name.replace("_", "-")
            parser.error(f"--{flag} {getattr(args, name)}: must be {least} or more")
    if args.classes_per_image is not None and not 1 <= args.classes_per_image <= len(CLASSES):
        parser.error(f"--classes-per-image {args.classes_per_image}: must be 1 to {len(CLASSES)}")
    if max(args.train, args.val) >= SPLIT_ID_STEP:
        parser.error(f"--train and --val must be below {SPLIT_ID_STEP}")
    scene_limits = args.max_forms, args.classes_per_image
    make_shapes(args.out, args.train, args.val, args.size, args.seed, *scene_limits)
    return 0


if __name__ == "__main__":
    sys.exit(main())
