"""Look over the files of a dataset and list all that is wrong with them, not the first fault only.

Faults keep programs from using a file, or make them learn something wrong; notes are worth knowing.
Annotations are streamed: memory holds the images and what was found.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from weaklabels.coco import CocoFile
from weaklabels.image_root import image_path
from weaklabels.json_stream import walk_object
from weaklabels.masks import Runs, check_segmentation, is_finite_number, segmentation_rle
from weaklabels.merge import refuse_other_categories, refuse_shared_images
from weaklabels.pictures import image_size_hw
from weaklabels.points import checked_point
from weaklabels.records import read_records
from weaklabels.tags import read_tags

FAULT, NOTE = "fault", "note"
SAMPLE = 32  # images that are looked at before a training


@dataclass(frozen=True)
class Finding:
    """level: FAULT or NOTE.  what: one line that names the file and the entry."""

    level: str
    what: str


def examine(
    annotations: Path,
    image_root: Path | None = None,
    weak: Path | None = None,
    records: Path | None = None,
) -> Iterator[Finding]:
    """Everything found in a COCO file, its images, the weak file and the records beside it.

    Instead of the COCO file, a tag file can be given, which has no annotations.
    """
    if _is_tag_file(annotations):
        yield from _tag_file(annotations, image_root)
        return
    strong_file = weak_file = None
    try:
        strong_file = CocoFile(annotations, skip_invalid=True)
        yield from _annotations(strong_file, is_weak=False)
        weak_file = CocoFile(weak, skip_invalid=True) if weak else None
        if weak_file:
            yield from _annotations(weak_file, is_weak=True)
            yield from _pair(strong_file, weak_file)
    except (OSError, ValueError) as error:
        yield Finding(FAULT, str(error))
    for file in filter(None, (strong_file, weak_file)):
        if image_root is not None:
            yield from _images(file.path, file.images.values(), image_root)
    if records is not None:
        yield from _records(records, weak_file or strong_file)


def _is_tag_file(path: Path) -> bool:
    """Whether a JSON file has the sections of a tag file; no where it cannot be read."""
    seen = set()
    try:
        for name, _, _ in walk_object(path, "images"):
            seen.add(name)
            if name == "annotations":
                return False
    except (OSError, ValueError):
        return False
    return {"images", "categories"} <= seen


def _tag_file(path: Path, image_root: Path | None) -> Iterator[Finding]:
    try:
        tags = read_tags(path)
    except (OSError, ValueError) as error:
        yield Finding(FAULT, str(error))
        return
    untagged, absent = tags.without_tags(), tags.absent_classes()
    if untagged:
        yield Finding(NOTE, f"{path}: {len(untagged)} images without a tag")
    if absent:
        yield Finding(NOTE, f"{path}: no image is tagged {', '.join(absent)}")
    if image_root is not None:
        yield from _images(path, [vars(image) for image in tags.images], image_root)


def _annotations(file: CocoFile, is_weak: bool) -> Iterator[Finding]:
    labeled, crowds, masks, off = set(), 0, 0, 0
    for annotation in tqdm(file.annotations(), f"{file.path.name}", unit="", leave=False):
        labeled.add(annotation["image_id"])
        crowds += bool(annotation.get("iscrowd"))
        masks += bool(annotation.get("segmentation") or annotation.get("bbox"))
        image = file.images[annotation["image_id"]]
        try:
            off += _check(annotation, image["height"], image["width"])
        except ValueError as error:
            yield Finding(FAULT, f"{file.path}: annotation id {annotation['id']}: {error}")
    yield from (Finding(FAULT, f"{file.path}: {problem}") for problem in file.skipped)
    if is_weak and masks:
        yield Finding(
            FAULT, f"{file.path}: {masks} annotations of this weak file have masks or boxes"
        )
    empty = len(file.images) - len(labeled)
    counts = {"images without a label": empty, "crowds": crowds, "points outside their mask": off}
    for what, count in counts.items():
        if count:
            yield Finding(NOTE, f"{file.path}: {count} {what}")


def _check(annotation: dict[str, Any], height: int, width: int) -> bool:
    """Whether its point lies outside its mask; ValueError where a part of it cannot be used."""
    segmentation, point, box = (annotation.get(k) for k in ("segmentation", "point", "bbox"))
    if not segmentation and point is None and not box:
        raise ValueError("neither a mask, a box nor a point")
    if box and not (isinstance(box, list) and len(box) == 4 and all(map(is_finite_number, box))):
        raise ValueError(f"bbox {box!r} is not a list of 4 finite numbers")
    if segmentation:
        check_segmentation(segmentation, height, width)
    if point is None:
        return False
    x, y = checked_point(point, height, width)
    if not segmentation:
        return False
    inside = min(int(x), width - 1), min(int(y), height - 1)
    return not Runs.of(segmentation_rle(segmentation, height, width)).holds(*inside)


def _pair(strong: CocoFile, weak: CocoFile) -> Iterator[Finding]:
    for check in (
        lambda: refuse_other_categories(strong, weak),
        lambda: refuse_shared_images(strong, weak.images, weak.path),
    ):
        try:
            check()
        except ValueError as error:
            yield Finding(FAULT, str(error))


def _images(path: Path, images: Collection[dict[str, Any]], root: Path) -> Iterator[Finding]:
    for image in tqdm(images, f"images of {path.name}", leave=False):
        where = f"{path}: image id {image['id']}"
        try:
            size = image_size_hw(image_path(root, image["file_name"]), where)
        except (OSError, ValueError) as error:
            yield Finding(FAULT, str(error) if where in str(error) else f"{where}: {error}")
            continue
        if size != (image["height"], image["width"]):
            stated = (image["height"], image["width"])
            yield Finding(FAULT, f"{where}: states {stated} (height, width), its file is {size}")


def _records(path: Path, file: CocoFile | None) -> Iterator[Finding]:
    seen: set[int] = set()
    try:
        for where, record in read_records(path):
            seen.add(record["image_id"])
            if file and record["image_id"] not in file.images:
                yield Finding(FAULT, f"{where}: image {record['image_id']} is not in {file.path}")
    except (OSError, ValueError) as error:
        yield Finding(FAULT, str(error))
        return
    missing = len(file.images.keys() - seen) if file else 0
    if missing:
        yield Finding(FAULT, f"{path}: {missing} images of {file.path} have no record")


def refuse_unreadable(where: str, images: Sequence[tuple[Path, tuple[int, int] | None]]) -> None:
    """ValueError for the first image of a sample that is missing, damaged or of another size.

    The cheap part of an examination: it opens the headers of a few images, spread over all, so that
    a wrong image root or copies of another size end a training at its start and not in its midst.

    Args:
        where: what names the images, for the message.
        images: path of each and, where that is known, height and width.
    """
    step = max(1, len(images) // SAMPLE)
    for path, size_hw in images[::step][: SAMPLE + 1]:
        found = image_size_hw(path, where)
        if size_hw is not None and found != tuple(size_hw):
            raise ValueError(
                f"{where}: image {path} is {found} (height, width), its labels say {size_hw}: use "
                "the images that the labels were made for"
            )
