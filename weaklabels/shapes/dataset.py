"""Make the shapes dataset: small synthetic scenes in COCO layout, for trying everything at once.

FOLDER/{train,val}/*.jpg and FOLDER/annotations/instances_{train,val}.json. The same seed gives the
same files (for one version of NumPy and OpenCV), and image i does not depend on how many images are
asked for.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from weaklabels.files import write_json
from weaklabels.masks import encode_mask, mask_fields, run_lengths
from weaklabels.shapes.scene import CLASSES, MAX_FORMS, Item, draw_scene

SPLITS = ("train", "val")
SPLIT_ID_STEP = 10_000_000  # image ids of a split start here, so that no id is in two splits
JPEG_QUALITY = 95
MIN_SIZE = 64


@dataclass(frozen=True)
class Scenes:
    """What the scenes of a dataset are like.

    size: longer side in pixels.  max_forms: most shapes in a scene.
    classes_per_image: most classes in a scene; None: any number.
    min_forms: least shapes that a scene tries to hold.
    """

    size: int
    seed: int
    max_forms: int
    classes_per_image: int | None
    min_forms: int = 1

    def __str__(self) -> str:
        text = f"size {self.size}, seed {self.seed}"
        if self.min_forms != 1:
            text += f", at least {self.min_forms} forms"
        if self.max_forms != MAX_FORMS:
            text += f", at most {self.max_forms} forms"
        if self.classes_per_image is not None:
            text += f", at most {self.classes_per_image} classes an image"
        return text


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
        limits = scenes.max_forms, scenes.classes_per_image, scenes.min_forms
        scene = draw_scene(rng, scenes.size, *limits)
        yield scene.image, scene.items


def make_shapes(
    folder: Path,
    train: int = 400,
    val: int = 100,
    size: int = 160,
    seed: int = 0,
    max_forms: int = MAX_FORMS,
    classes_per_image: int | None = None,
    min_forms: int = 1,
) -> dict[Path, int]:
    """Write the whole dataset; an annotation file appears when its images are all there.

    Args:
        train, val: numbers of images.
        size: longer side, pixels.
        max_forms, classes_per_image, min_forms: see `Scenes`. With 4 and 2 the tags of images alone
            say enough for a small network to learn the classes; default scenes hold almost three
            of the seven classes.

    Returns:
        each annotation file and its number of annotations.

    Raises:
        ValueError: a number is out of range; nothing is written.
    """
    limits = {
        "train": (train, 1),
        "val": (val, 1),
        "size": (size, MIN_SIZE),
        "seed": (seed, 0),
        "min-forms": (min_forms, 1),
        "max-forms": (max_forms, 1),
    }
    for name, (value, least) in limits.items():
        if value < least:
            raise ValueError(f"--{name} {value}: must be {least} or more")
    if min_forms > max_forms:
        raise ValueError(f"--min-forms {min_forms}: must be at most --max-forms, {max_forms}")
    if classes_per_image is not None and not 1 <= classes_per_image <= len(CLASSES):
        raise ValueError(f"--classes-per-image {classes_per_image}: must be 1 to {len(CLASSES)}")
    if max(train, val) >= SPLIT_ID_STEP:
        raise ValueError(f"--train and --val must be below {SPLIT_ID_STEP}")
    scenes = Scenes(size, seed, max_forms, classes_per_image, min_forms)
    written = {}
    for split, count in zip(SPLITS, (train, val), strict=True):
        content = make_split(folder, split, count, scenes)
        path = folder / "annotations" / f"instances_{split}.json"
        write_json(path, content)
        written[path] = len(content["annotations"])
    return written
