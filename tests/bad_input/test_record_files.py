"""Prediction records that cannot be used, given to every program that reads them."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.bad_input.checks import refused
from tests.bad_input.world import World

READERS = {
    "merge": "weak.jsonl",
    "refine": "weak.jsonl",
    "evaluate-labels": "weak.jsonl",
    "train-refiner": "strong.jsonl",
}
EVERY_FAULT = ("merge", "refine")
NAN = float("nan")


def of_record(key: str, value: Any) -> Callable[[World, str], None]:
    return lambda world, name: world.edit_record(name, lambda record: record.update({key: value}))


def of_instance(key: str, value: Any) -> Callable[[World, str], None]:
    def change(record: dict) -> None:
        record["instances"][1][key] = value

    return lambda world, name: world.edit_record(name, change)


def second_line(text: str | bytes) -> Callable[[World, str], None]:
    def write(world: World, name: str) -> None:
        path = world.folder / name
        lines = path.read_bytes().splitlines()
        lines[1] = text if isinstance(text, bytes) else text.encode()
        path.write_bytes(b"\n".join(lines) + b"\n")

    return write


def doubled(world: World, name: str) -> None:
    path = world.folder / name
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[0], *lines[1:]]) + "\n")


def rle(counts: Any, size: Any = (64, 64)) -> dict[str, Any]:
    return {"size": list(size), "counts": counts}


RECORDS: dict[str, Callable[[World, str], None]] = {
    "no JSON": second_line("{"),
    "blank": second_line(""),
    "a list": second_line("[]"),
    "not utf-8": second_line(b'{"image_id": "\xff"}'),
    "deep nesting": second_line("[" * 100_000),
    "huge integer": second_line('{"image_id": ' + "9" * 5000 + "}"),
    "garbage behind": second_line('{"image_id": 5} {}'),
    "the image again": doubled,
    "image_id is text": of_record("image_id", "5"),
    "image_id is NaN": of_record("image_id", NAN),
    "file_name is a number": of_record("file_name", 5),
    "file_name leaves the root": of_record("file_name", "../5.png"),
    "size as float": of_record("height", 64.0),
    "size of 2^40": of_record("width", 2**40),
    "instances are null": of_record("instances", None),
    "an instance is null": of_record("instances", [None]),
}
INSTANCES: dict[str, Callable[[World, str], None]] = {
    "score NaN": of_instance("score", NAN),
    "score inf": of_instance("score", float("inf")),
    "score is text": of_instance("score", "0.5"),
    "score is null": of_instance("score", None),
    "category is text": of_instance("category_id", "box"),
    "category is a list": of_instance("category_id", [1]),
    "point is text": of_instance("point", ["3", "4"]),
    "point is short": of_instance("point", [3]),
    "point is NaN": of_instance("point", [NAN, 3]),
    "point is a number": of_instance("point", 3),
    "no mask": of_instance("segmentation", None),
    "RLE zzzz": of_instance("segmentation", rle("zzzz")),
    "RLE empty": of_instance("segmentation", rle("")),
    "RLE of a wrong total": of_instance("segmentation", rle("11")),
    "RLE of another size": of_instance("segmentation", rle([100], (10, 10))),
    "polygon at 1e308": of_instance("segmentation", [[1e308, 0, 9, 9, 0, 9]]),
}


def cases(faults: dict[str, Any], *some: str) -> pytest.MarkDecorator:
    named = [(program, fault) for program in EVERY_FAULT for fault in faults]
    others = [program for program in READERS if program not in EVERY_FAULT]
    named += [(program, fault) for program in others for fault in some]
    ids = [f"{program}-{fault}".replace(" ", "_") for program, fault in named]
    return pytest.mark.parametrize(("program", "fault"), named, ids=ids)


@cases(RECORDS, "no JSON", "the image again")
def test_records_that_cannot_be(world: World, capfd, program: str, fault: str):
    RECORDS[fault](world, READERS[program])
    refused(world, program, capfd, f"{READERS[program]}:2")


@cases(INSTANCES, "score NaN", "point is short", "RLE zzzz")
def test_instances_that_cannot_be(world: World, capfd, program: str, fault: str):
    INSTANCES[fault](world, READERS[program])
    refused(world, program, capfd, f"{READERS[program]}:2", "instance 1")


@pytest.mark.parametrize("program", READERS)
def test_a_file_without_a_record(world: World, capfd, program: str):
    (world.folder / READERS[program]).write_text("")
    refused(world, program, capfd, READERS[program])


@pytest.mark.parametrize("program", READERS)
def test_a_record_that_is_cut_off(world: World, capfd, program: str):
    path = world.folder / READERS[program]
    path.write_bytes(path.read_bytes()[:-30])
    refused(world, program, capfd, f"{READERS[program]}:3")


def test_records_of_another_dataset(world: World, capfd):
    world.edit_record("weak.jsonl", lambda record: record.update(image_id=999))
    refused(world, "merge", capfd, "weak.jsonl:2", "image 999")
    world.edit_record("weak.jsonl", lambda record: record.update(image_id=5))
    world.edit_record("weak.jsonl", lambda record: record["instances"][0].update(category_id=9))
    refused(world, "merge", capfd, "weak.jsonl:2", "category_id 9")
    refused(world, "refine", capfd, "image 5", "category 9")


RESULTS = {
    "an object": {},
    "a number": 5,
    "entries are text": ["x"],
    "no image_id": [{"category_id": 1}],
    "unknown image": [{"image_id": 99, "category_id": 1, "segmentation": rle("P4"), "score": 1}],
    "no mask": [{"image_id": 4, "category_id": 1, "score": 1}],
    "score is text": [{"image_id": 4, "category_id": 1, "score": "x", "segmentation": rle([4096])}],
    "score is null": [
        {"image_id": 4, "category_id": 1, "score": None, "segmentation": rle([4096])}
    ],
    "score NaN": [{"image_id": 4, "category_id": 1, "score": NAN, "segmentation": rle([4096])}],
    "box is text": [{"image_id": 4, "category_id": 1, "bbox": "x", "segmentation": rle([4096])}],
    "box is NaN": [
        {"image_id": 4, "category_id": 1, "bbox": [NAN, 1, 2, 3], "segmentation": rle([4096])}
    ],
}


@pytest.mark.parametrize("fault", RESULTS)
def test_result_lists_that_cannot_be(world: World, capfd, fault: str):
    path = world.folder / "results.json"
    path.write_text(json.dumps(RESULTS[fault]))
    words = [word.replace("weak.jsonl", "results.json") for word in world.words("refine")]
    refused(world, "refine", capfd, "results.json", words=words)
