"""Annotation files that cannot be used, given to every program that reads one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.bad_input.checks import refused
from tests.bad_input.world import World

# The program, and the annotation file that it reads with masks.
READERS = {
    "split": "train.json",
    "merge": "strong.json",
    "evaluate-labels": "train.json",
    "train": "strong.json",
    "evaluate": "strong.json",
    "train-refiner": "strong.json",
    "import-points": "strong.json",
}
LAST = {"train.json": "annotation id 61", "strong.json": "annotation id 31"}
EVERY_FAULT = ("split", "train")  # one program for each way to read such files
HUGE = "9" * 5000


def text(content: str | bytes) -> Callable[[Path], None]:
    """Replace the whole file."""
    data = content.encode() if isinstance(content, str) else content
    return lambda path: path.write_bytes(data)


def edited(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    """Change the content, which stays JSON; NaN and Infinity are written as Python does."""

    def edit(path: Path) -> None:
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return edit


def patched(old: str, new: str) -> Callable[[Path], None]:
    """Replace text in the file, which need not stay JSON."""

    def patch(path: Path) -> None:
        content = path.read_text()
        assert old in content
        path.write_text(content.replace(old, new, 1))

    return patch


def appended(tail: str) -> Callable[[Path], None]:
    return lambda path: path.write_text(path.read_text() + tail)


def of_image(key: str, value: Any) -> Callable[[Path], None]:
    return edited(lambda c: c["images"][1].update({key: value}))


def of_annotation(key: str, value: Any) -> Callable[[Path], None]:
    """Of the file's last annotation."""
    return edited(lambda c: c["annotations"][-1].update({key: value}))


def rle(counts: Any, size: Any = (64, 64)) -> dict[str, Any]:
    return {"size": list(size), "counts": counts}


WHOLE_FILE: dict[str, Callable[[Path], None]] = {
    "empty": text(""),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "garbage behind": appended(" garbage"),
    "two objects": appended("{}"),
    "a list": text("[]"),
    "a number": text("7"),
    "not utf-8": text(b'{"images": "\xff\xfe"}'),
    "deep nesting": text("[" * 100_000),
    "a section twice": patched('{"images"', '{"images": [], "images"'),
    "no categories": edited(lambda c: c.pop("categories")),
    "images are an object": edited(lambda c: c.update(images={})),
    "annotations are null": edited(lambda c: c.update(annotations=None)),
    "huge integer": patched('"iscrowd": 0', f'"iscrowd": {HUGE}'),
    "image is text": edited(lambda c: c["images"].append("x")),
    "annotation is text": edited(lambda c: c["annotations"].append("x")),
    "category is text": edited(lambda c: c["categories"].append("x")),
    "category without name": edited(lambda c: c["categories"][1].pop("name")),
    "category twice": edited(lambda c: c["categories"].append(c["categories"][0])),
}
IMAGES: dict[str, Callable[[Path], None]] = {
    "no size": edited(lambda c: c["images"][1].pop("height")),
    "size as float": of_image("width", 64.0),
    "size as text": of_image("width", "64"),
    "size 0": of_image("height", 0),
    "size 2^32": of_image("height", 2**32),
    "size NaN": of_image("height", float("nan")),
    "file_name is a number": of_image("file_name", 5),
    "file_name leaves the root": of_image("file_name", "../images/2.png"),
    "file_name is absolute": of_image("file_name", "/etc/hostname"),
}
ANNOTATIONS: dict[str, Callable[[Path], None]] = {
    "unknown category": of_annotation("category_id", 99),
    "category is text": of_annotation("category_id", "box"),
    "category is a list": of_annotation("category_id", [1]),
    "image is a list": of_annotation("image_id", [1]),
}


FAR = [[1e9, 0, 1e9, 9, 0, 9]]
MASKS = {
    "polygon at 1e9": FAR,
    "polygon at -1e9": [[-1e9, 0, 5, 9, 0, 9]],
    "polygon at 1e308": [[1e308, 0, 5, 9, 0, 9]],
    "polygon with NaN": [[float("nan"), 0, 5, 9, 0, 9]],
    "polygon with inf": [[float("inf"), 0, 5, 9, 0, 9]],
    "polygon with null": [[None, 0, 5, 9, 0, 9]],
    "polygon with text": [["1", 0, 5, 9, 0, 9]],
    "polygon is text": ["abc"],
    "polygon is a number": [5],
    "segmentation is text": "abc",
    "RLE zzzz": rle("zzzz"),
    "RLE empty": rle(""),
    "RLE 11": rle("11"),
    "RLE of a wrong total": rle([10, 10]),
    "RLE with negative runs": rle([-10, 4106]),
    "RLE with null": rle([None, 4096]),
    "RLE of size 0": rle("", (0, 0)),
    "RLE of size 10^9": rle("P4", (10**9, 10**9)),
    "RLE of size 2^32": rle([2**64], (2**32, 2**32)),
    "RLE counts null": rle(None),
    "RLE without size": {"counts": "abc"},
}


def cases(faults: dict[str, Any], *some: str, others: tuple[str, ...]) -> pytest.MarkDecorator:
    """Every fault to two programs, `some` of the faults to the `others`."""
    named = [(program, fault) for program in EVERY_FAULT for fault in faults]
    named += [(program, fault) for program in others for fault in some]
    ids = [f"{program}-{fault}".replace(" ", "_") for program, fault in named]
    return pytest.mark.parametrize(("program", "fault"), named, ids=ids)


OTHERS = tuple(name for name in READERS if name not in EVERY_FAULT)
DRAWING = tuple(name for name in OTHERS if name not in ("merge", "import-points"))


@cases(WHOLE_FILE, "cut off", "a section twice", "category twice", others=OTHERS)
def test_damaged_files(world: World, capfd, program: str, fault: str):
    path = world.folder / READERS[program]
    WHOLE_FILE[fault](path)
    refused(world, program, capfd, path.name)


@cases(IMAGES, "size as float", "file_name leaves the root", others=OTHERS)
def test_images_that_cannot_be(world: World, capfd, program: str, fault: str):
    path = world.folder / READERS[program]
    IMAGES[fault](path)
    refused(world, program, capfd, path.name, "image id 2")


@cases(ANNOTATIONS, "unknown category", others=OTHERS)
def test_annotations_that_belong_nowhere(world: World, capfd, program: str, fault: str):
    path = world.folder / READERS[program]
    ANNOTATIONS[fault](path)
    refused(world, program, capfd, path.name, LAST[path.name])


@cases(MASKS, "polygon at 1e9", "polygon with NaN", "RLE zzzz", others=DRAWING)
def test_masks_that_cannot_be_drawn(world: World, capfd, program: str, fault: str):
    path = world.folder / READERS[program]
    of_annotation("segmentation", MASKS[fault])(path)
    refused(world, program, capfd, path.name, LAST[path.name])


POINTS = {
    "NaN": [float("nan"), 3],
    "inf": [3, float("inf")],
    "text": ["3", "4"],
    "short": [3],
    "long": [3, 4, 5],
    "null": [None, None],
    "outside": [999, 3],
    "a number": 3,
    "an object": {"x": 3, "y": 4},
}


@pytest.mark.parametrize("fault", POINTS)
@pytest.mark.parametrize("program", ["generate", "train", "split"])
def test_points_that_cannot_be(world: World, capfd, program: str, fault: str):
    name = {"generate": "weak.json", "train": "strong.json", "split": "train.json"}[program]

    def change(content: dict) -> None:
        annotation = content["annotations"][-1]
        annotation["point"] = POINTS[fault]
        if program == "split":  # an annotation with a mask gets its point from that
            annotation.pop("segmentation")

    path = world.folder / name
    edited(change)(path)
    number = world.json(name)["annotations"][-1]["id"]
    refused(world, program, capfd, name, f"annotation id {number}")


BOXES = {"NaN": [float("nan"), 1, 2, 3], "text": ["1", 1, 2, 3], "short": [1], "null": [None] * 4}


@pytest.mark.parametrize("fault", BOXES)
def test_boxes_that_cannot_be(world: World, capfd, fault: str):
    of_annotation("bbox", BOXES[fault])(world.folder / "strong.json")
    refused(world, "train", capfd, "strong.json", "annotation id 31")
