"""Split a COCO instance file into strong labels (masks) and weak labels (one point per instance).

instances_train2017_10p_s.json holds 10 percent of the images, annotations unchanged, and
instances_train2017_10p_w.json the other images: no mask, box or area, nothing but points. The same
seed gives the same bytes. Annotations are streamed: memory holds the images only.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from weaklabels.coco import CocoFile, CocoWriter
from weaklabels.files import atomic_text
from weaklabels.locks import output_lock
from weaklabels.masks import check_segmentation
from weaklabels.points import checked_point, mask_point, point_rule

MASK_SECONDS = 79.2  # per instance, as COCO reports for its masks
POINT_SECONDS = 2.4  # per instance; what points cost depends on the tool and the people
POINT_DECIMALS = 4
# What a weak file may say about the dataset and an image; other fields could hold masks or boxes.
WEAK_SECTIONS = ("info", "licenses", "categories")
WEAK_IMAGE_KEYS = ("id", "file_name", "height", "width", "license", "coco_url", "flickr_url")
Writers = tuple[CocoWriter, CocoWriter]  # of the strong and the weak file


@dataclass(frozen=True)
class SplitSettings:
    """How to split; each of `percents` and `images` asks for one pair of files.

    percents: share of the images that becomes strong.  images: number of them.
    fold: 0, 1, ...: the strong parts of different folds have no image in common.
    stratify: every class keeps its share.
    points: the rule by which a mask gets its point, as `points.point_rule` reads it.
    """

    percents: tuple[float, ...] = ()
    images: tuple[int, ...] = ()
    seed: int = 0
    fold: int = 0
    stratify: bool = False
    points: str = "centroid"

    def __post_init__(self) -> None:
        if self.seed < 0 or self.fold < 0:
            raise ValueError(f"seed {self.seed} and fold {self.fold} must be 0 or more")
        if not self.percents and not self.images:
            raise ValueError("a split needs a percentage or a number of images")
        if not all(map(math.isfinite, self.percents)):
            raise ValueError(f"percentages {self.percents} must be finite numbers")
        point_rule(self.points)


@dataclass
class Split:
    """One pair of files to write, and what has been written to it."""

    name: str
    strong: set[int] = field(repr=False)
    num_images: int
    num_masks: int = 0
    num_points: int = 0
    num_crowds: int = 0


def split_coco(source: CocoFile, out: Path, settings: SplitSettings) -> list[Split]:
    """Write the pairs of files into the folder `out`; `source.skipped` lists what was left out.

    Raises:
        InvalidAnnotation: an annotation cannot be used and `source` does not skip such ones.
        ValueError: the images do not suffice.
    """
    splits = plan_splits(source, settings)
    write_splits(source, splits, out, settings)
    return splits


def choose_images(image_ids: Sequence[int], count: int, fold: int, seed: int) -> set[int]:
    """`count` random images; folds 0, 1, ... of one seed and count have no image in common."""
    order = np.random.default_rng(seed).permutation(len(image_ids))
    return {image_ids[i] for i in order[fold * count : (fold + 1) * count]}


def choose_stratified(
    image_ids: Sequence[int], classes: dict[int, set[int]], count: int, fold: int, seed: int
) -> set[int]:
    """`count` random images in which every class has its share; folds as in `choose_images`.

    Images are ordered by the rarest class they show, at random within a class, and then taken
    at equal distances. So of the images whose rarest class is c, the right share +-1 is taken.

    Args:
        classes: the category ids shown by each image that has annotations.
    """
    rng = np.random.default_rng(seed)
    order = [image_ids[i] for i in rng.permutation(len(image_ids))]
    frequency: dict[int, int] = {}
    for shown in classes.values():
        for category in shown:
            frequency[category] = frequency.get(category, 0) + 1
    rarest = {i: min((frequency[c], c) for c in shown) for i, shown in classes.items() if shown}
    order.sort(key=lambda i: rarest.get(i, (0, 0)))  # stable: random within a class
    total, start = len(order), int(rng.integers(len(order)))  # else the first is always taken
    return {order[(start + fold + k * total // count) % total] for k in range(count)}


def plan_splits(source: CocoFile, settings: SplitSettings) -> list[Split]:
    """The splits that the settings ask for; ValueError where the images do not suffice."""
    image_ids = list(source.images)
    total = len(image_ids)
    classes: dict[int, set[int]] = {}
    if settings.stratify:
        for annotation in source.annotations():
            classes.setdefault(annotation["image_id"], set()).add(annotation["category_id"])
    splits = []
    for name, count in _wanted(settings, total):
        if not 0 < count < total:
            raise ValueError(
                f"{source.path}: {name} of its {total} images are {count}; "
                "both the strong and the weak part need an image or more"
            )
        if settings.fold >= total // count:
            raise ValueError(
                f"--fold {settings.fold}: {name} has folds 0 to {total // count - 1} only"
            )
        which = (count, settings.fold, settings.seed)
        if settings.stratify:
            chosen = choose_stratified(image_ids, classes, *which)
        else:
            chosen = choose_images(image_ids, *which)
        splits.append(Split(name, chosen, count))
    return splits


def _wanted(settings: SplitSettings, total: int) -> Iterator[tuple[str, int]]:
    """Name and number of strong images of each split."""
    suffix = f"_fold{settings.fold}" if settings.fold else ""
    for count in settings.images:
        yield f"{count}i{suffix}", count
    for percent in settings.percents:
        yield f"{percent:g}p{suffix}", math.floor(total * percent / 100 + 0.5)


def weak_annotation(
    annotation: dict[str, Any], image: dict[str, Any], settings: SplitSettings
) -> dict[str, Any]:
    """Only ids, class and a point inside the image; ValueError where no point can be made.

    An annotation that has a point and no mask keeps its point.
    """
    height, width = image["height"], image["width"]
    if annotation.get("segmentation"):
        # Seeded by the annotation, so that its point is the same in every split.
        rng = np.random.default_rng([settings.seed, abs(annotation["id"])])
        rule = point_rule(settings.points)
        x, y = mask_point(annotation["segmentation"], height, width, rule, rng)
    elif "point" in annotation:
        x, y = checked_point(annotation["point"], height, width)
    else:
        raise ValueError("neither a mask nor a point")
    return {
        "id": annotation["id"],
        "image_id": annotation["image_id"],
        "category_id": annotation["category_id"],
        "iscrowd": 0,
        "point": [round(x, POINT_DECIMALS), round(y, POINT_DECIMALS)],
    }


def write_splits(source: CocoFile, splits: list[Split], out: Path, settings: SplitSettings) -> None:
    """Stream the annotations, each of them checked, once into the two files of every split."""
    with ExitStack() as stack:
        writers = [
            tuple(_open_part(stack, source, split, out, kind) for kind in ("s", "w"))
            for split in splits
        ]
        for annotation in tqdm(source.annotations(), "annotations", unit="", unit_scale=True):
            image = source.images[annotation["image_id"]]
            try:
                _add(annotation, image, splits, writers, settings)
            except ValueError as error:
                source.reject(f"annotation id {annotation['id']}: {error}")
        for pair in writers:
            for writer in pair:
                writer.close()


def _open_part(
    stack: ExitStack, source: CocoFile, split: Split, out: Path, kind: str
) -> CocoWriter:
    strong = kind == "s"
    header = source.header
    images = [i for i in header["images"] if (i["id"] in split.strong) == strong]
    if not strong:
        header = {key: header[key] for key in WEAK_SECTIONS if key in header}
        images = [{key: i[key] for key in WEAK_IMAGE_KEYS if key in i} for i in images]
    path = out / f"{source.path.stem}_{split.name}_{kind}.json"
    stack.enter_context(output_lock(path))
    handle = stack.enter_context(atomic_text(path))
    return CocoWriter(handle, header | {"images": images}, source.path)


def _add(
    annotation: dict[str, Any],
    image: dict[str, Any],
    splits: list[Split],
    writers: list[Writers],
    settings: SplitSettings,
) -> None:
    crowd = bool(annotation.get("iscrowd", 0))
    if not crowd and any(image["id"] not in split.strong for split in splits):
        weak = weak_annotation(annotation, image, settings)
    if any(image["id"] in split.strong for split in splits):
        if not annotation.get("segmentation"):
            raise ValueError("a strong image's annotation has no mask")
        check_segmentation(annotation["segmentation"], image["height"], image["width"])
    for split, (strong_writer, weak_writer) in zip(splits, writers, strict=True):
        if image["id"] in split.strong:
            strong_writer.add(annotation)
            split.num_masks += 1
        elif crowd:
            split.num_crowds += 1
        else:
            weak_writer.add(weak)
            split.num_points += 1


def describe_split(
    split: Split,
    total_images: int,
    mask_seconds: float = MASK_SECONDS,
    point_seconds: float = POINT_SECONDS,
) -> str:
    """One paragraph: what is in the two files, and what labeling them by hand would take."""
    masks = split.num_masks * mask_seconds / 3600
    points = split.num_points * point_seconds / 3600
    full = (split.num_masks + split.num_crowds + split.num_points) * mask_seconds / 3600
    share = f" ({100 * (masks + points) / full:.1f}%)" if full else ""
    return (
        f"{split.name}: strong {split.num_images} images, {split.num_masks} masks; "
        f"weak {total_images - split.num_images} images, {split.num_points} points, "
        f"{split.num_crowds} crowds left out\n"
        f"  labeling: {split.num_masks} x {mask_seconds:g} s + {split.num_points} x "
        f"{point_seconds:g} s = {masks + points:.1f} h; masks for all: {full:.1f} h{share}"
    )
