"""Split a COCO instance file into strong labels (masks) and weak labels (one point an instance).

    python tools/split_coco.py annotations/instances_train2017.json --percent 5 10

writes instances_train2017_10p_s.json (10 percent of the images, annotations unchanged) and
instances_train2017_10p_w.json (the other images; no mask, box or area, nothing but points).
The same seed gives the same bytes. Annotations are streamed: memory holds the images only.
"""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from weaklabels.coco import CocoFile, CocoWriter, InvalidAnnotation
from weaklabels.files import atomic_text
from weaklabels.masks import Runs, check_segmentation, segmentation_rle

MASK_SECONDS = 79.2  # per instance, as COCO reports for its masks
POINT_SECONDS = 2.4  # per instance; what points cost depends on the tool and the people
POINT_DECIMALS = 4
# What a weak file may say about the set and an image; other fields could hold masks or boxes.
WEAK_SECTIONS = ("info", "licenses", "categories")
WEAK_IMAGE_KEYS = ("id", "file_name", "height", "width", "license", "coco_url", "flickr_url")
PointMaker = Callable[[Runs, np.random.Generator], tuple[float, float]]


@dataclass
class Split:
    """One pair of files to write, and what has been written to it."""

    name: str
    strong: set[int] = field(repr=False)
    num_images: int
    num_masks: int = 0
    num_points: int = 0
    num_crowds: int = 0


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


def centroid(runs: Runs, rng: np.random.Generator) -> tuple[float, float]:
    """The centre of mass; it may lie in a hole or beside the mask."""
    return runs.centre_of_mass()


def inside(runs: Runs, rng: np.random.Generator) -> tuple[float, float]:
    """The centre of mass, moved to the nearest mask pixel where it is not in the mask."""
    x, y = runs.centre_of_mass()
    # Readers differ in how they find a point's pixel; either way must hit the mask.
    if runs.holds(int(x), int(y)) and runs.holds(round(x), round(y)):
        return x, y
    return runs.nearest_pixel(x, y)


def random_pixel(runs: Runs, rng: np.random.Generator) -> tuple[float, float]:
    """Any pixel of the mask, all with the same chance."""
    return runs.pixel(int(rng.integers(runs.area)))


def jitter(sigma: float) -> PointMaker:
    """The centre of mass with normal noise of `sigma` pixels in x and in y."""

    def noisy(runs: Runs, rng: np.random.Generator) -> tuple[float, float]:
        x, y = np.array(runs.centre_of_mass()) + sigma * rng.standard_normal(2)
        return float(x), float(y)

    return noisy


POINTS: dict[str, PointMaker] = {"centroid": centroid, "inside": inside, "random": random_pixel}


def point_maker(text: str) -> PointMaker:
    """The rule that `--points TEXT` names."""
    if text in POINTS:
        return POINTS[text]
    name, _, number = text.partition(":")
    try:
        sigma = float(number) if name == "jitter" else math.nan
    except ValueError:
        sigma = math.nan
    if not (math.isfinite(sigma) and sigma >= 0):
        raise argparse.ArgumentTypeError(
            f"{text!r}; expected one of {', '.join(POINTS)}, jitter:SIGMA (pixels, e.g. jitter:5)"
        )
    return jitter(sigma)


def weak_annotation(
    annotation: dict[str, Any], image: dict[str, Any], make_point: PointMaker, seed: int
) -> dict[str, Any]:
    """Only ids, class and a point inside the image; ValueError where no point can be made.

    An annotation that has a point and no mask keeps its point.
    """
    height, width = image["height"], image["width"]
    if annotation.get("segmentation"):
        x, y = _mask_point(annotation, height, width, make_point, seed)
        x, y = min(max(x, 0.0), width - 1.0), min(max(y, 0.0), height - 1.0)
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


def _mask_point(
    annotation: dict[str, Any], height: int, width: int, make_point: PointMaker, seed: int
) -> tuple[float, float]:
    runs = Runs.of(segmentation_rle(annotation["segmentation"], height, width))
    if runs.area:
        # Seeded by the annotation, so that its point is the same in every split.
        return make_point(runs, np.random.default_rng([seed, abs(annotation["id"])]))
    if isinstance(annotation["segmentation"], list):  # too thin to cover the middle of a pixel
        corners = np.concatenate(annotation["segmentation"]).reshape(-1, 2)
        return checked_point((corners.mean(axis=0) - 0.5).tolist(), height, width)
    raise ValueError("an empty mask has no point")


def checked_point(point: Any, height: int, width: int) -> tuple[float, float]:
    """`point` as two floats; ValueError where it is no point of the image's frame."""
    try:
        x, y = (float(v) for v in point)
    except (TypeError, ValueError):
        raise ValueError(f"point {point!r} is not [x, y]") from None
    if not (0 <= x <= width and 0 <= y <= height):  # also false for NaN
        raise ValueError(f"point {[x, y]} is outside the image of width {width}, height {height}")
    return x, y


def plan_splits(source: CocoFile, args: argparse.Namespace) -> list[Split]:
    """The splits that the arguments ask for; ValueError where the images do not suffice."""
    image_ids = list(source.images)
    total = len(image_ids)
    classes: dict[int, set[int]] = {}
    if args.stratify:
        for annotation in source.annotations():
            classes.setdefault(annotation["image_id"], set()).add(annotation["category_id"])
    suffix = f"_fold{args.fold}" if args.fold else ""
    wanted = [(f"{n}i", n) for n in args.images or ()]
    wanted += [(f"{p:g}p", math.floor(total * p / 100 + 0.5)) for p in args.percent or ()]
    splits = []
    for name, count in wanted:
        if not 0 < count < total:
            raise ValueError(
                f"{source.path}: {name} of its {total} images are {count}; "
                "both the strong and the weak part need an image or more"
            )
        if args.fold >= total // count:
            raise ValueError(f"--fold {args.fold}: {name} has folds 0 to {total // count - 1} only")
        if args.stratify:
            chosen = choose_stratified(image_ids, classes, count, args.fold, args.seed)
        else:
            chosen = choose_images(image_ids, count, args.fold, args.seed)
        splits.append(Split(name + suffix, chosen, count))
    return splits


def write_splits(
    source: CocoFile, splits: list[Split], out: Path, args: argparse.Namespace
) -> None:
    """Stream the annotations, each of them checked, once into the two files of every split."""
    with ExitStack() as stack:
        writers = [
            [_open_part(stack, source, split, out, kind) for kind in ("s", "w")] for split in splits
        ]
        for annotation in tqdm(source.annotations(), "annotations", unit="", unit_scale=True):
            image = source.images[annotation["image_id"]]
            try:
                _add(annotation, image, splits, writers, args)
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
    handle = stack.enter_context(atomic_text(path))
    return CocoWriter(handle, header | {"images": images})


def _add(
    annotation: dict[str, Any],
    image: dict[str, Any],
    splits: list[Split],
    writers: list[list[CocoWriter]],
    args: argparse.Namespace,
) -> None:
    crowd = bool(annotation.get("iscrowd", 0))
    if not crowd and any(image["id"] not in split.strong for split in splits):
        weak = weak_annotation(annotation, image, args.points, args.seed)
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


def report(split: Split, total_images: int, mask_seconds: float, point_seconds: float) -> str:
    """One paragraph: what is in the two files, and what a labeller would have spent on them."""
    masks = split.num_masks * mask_seconds / 3600
    points = split.num_points * point_seconds / 3600
    full = (split.num_masks + split.num_crowds + split.num_points) * mask_seconds / 3600
    share = f" ({100 * (masks + points) / full:.1f}%)" if full else ""
    return (
        f"{split.name}: strong {split.num_images} images, {split.num_masks} masks; "
        f"weak {total_images - split.num_images} images, {split.num_points} points, "
        f"{split.num_crowds} crowds left out\n"
        f"  labelling: {split.num_masks} x {mask_seconds:g} s + {split.num_points} x "
        f"{point_seconds:g} s = {masks + points:.1f} h; masks for all: {full:.1f} h{share}"
    )


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("annotations", type=Path, help="COCO instance file with masks")
    amount = parser.add_mutually_exclusive_group(required=True)
    amount.add_argument(
        "--percent", type=float, nargs="+", metavar="P", help="percent of the images, e.g. 0.5 10"
    )
    amount.add_argument("--images", type=int, nargs="+", metavar="N", help="number of images")
    parser.add_argument("--out-dir", type=Path, help="default: beside the annotation file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fold", type=int, default=0, help="0, 1, ...: disjoint strong sets")
    parser.add_argument("--stratify", action="store_true", help="every class keeps its share")
    parser.add_argument(
        "--points",
        type=point_maker,
        default="centroid",
        metavar="RULE",
        help="centroid | inside | random | jitter:SIGMA (pixels)",
    )
    parser.add_argument(
        "--skip-invalid", action="store_true", help="list invalid annotations and leave them out"
    )
    parser.add_argument("--mask-seconds", type=float, default=MASK_SECONDS, metavar="S")
    parser.add_argument("--point-seconds", type=float, default=POINT_SECONDS, metavar="S")
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.seed < 0 or args.fold < 0:
        parser.error("--seed and --fold must be 0 or more")
    try:
        source = CocoFile(args.annotations, args.skip_invalid)
        splits = plan_splits(source, args)
        write_splits(source, splits, args.out_dir or args.annotations.parent, args)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        if isinstance(error, InvalidAnnotation):
            print("--skip-invalid lists such annotations and leaves them out", file=sys.stderr)
        return 1
    for problem in source.skipped:
        print(f"skipped: {problem}", file=sys.stderr)
    if source.skipped:
        print(f"{len(source.skipped)} invalid annotations skipped", file=sys.stderr)
    for split in splits:
        print(report(split, len(source.images), args.mask_seconds, args.point_seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
