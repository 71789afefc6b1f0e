"""Detections of files: both forms, boxes at the edges, and what is wrong with a file."""

import json

import numpy as np
import pytest

from tests.weaksam.samples import detection_entry as entry
from tests.weaksam.samples import tags_of
from weaksam.detections import read_detections


def test_records_and_results_are_the_same(tmp_path):
    tags = tags_of([0], [1])
    entries = [entry(), entry(2, 2, 0.25, (0, 0, 400, 400)), entry(2, 1, 0, (5.5, 0, 1, 1))]
    results, records = tmp_path / "results.json", tmp_path / "records.jsonl"
    results.write_text(json.dumps(entries))
    lines = [
        {"image_id": n, "instances": [e for e in entries if e["image_id"] == n]} for n in (1, 2)
    ]
    records.write_text("".join(json.dumps(line) + "\n" for line in lines))
    one, other = read_detections(results, tags), read_detections(records, tags)
    for name in ("images", "classes", "boxes", "scores"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert one.images.tolist() == [0, 1, 1] and one.classes.tolist() == [0, 1, 0]
    assert one.boxes.tolist() == [[1, 2, 3, 4], [0, 0, 400, 400], [5.5, 0, 1, 1]]


def test_boxes_are_cut_where_they_count_the_last_pixel_twice(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps([entry(bbox=(-0.5, 10, 401, 391))]))
    assert read_detections(path, tags_of([0])).boxes.tolist() == [[0, 10, 400, 390]]


WRONG = {
    "image_id 7 is not among the 1 images of": entry(7),
    "image_id '000001' is no whole number": entry("000001"),
    "category_id 9 is not among the categories": entry(category_id=9),
    r"category_id \[1\] is not among": entry(category_id=[1]),
    "score nan is no number": entry(score=float("nan")),
    "score -1 is no number": entry(score=-1),
    "score '0.5' is no number": entry(score="0.5"),
    r"bbox \[1, nan, 3, 4\] is not x, y": entry(bbox=(1, float("nan"), 3, 4)),
    r"bbox \[1, 2, 3\] is not x, y": entry(bbox=(1, 2, 3)),
    "bbox None is not x, y": entry(bbox=None),
    r"bbox \[1, 2, 0, 4\] has no area": entry(bbox=(1, 2, 0, 4)),
    r"bbox \[1, 2, 3, -4\] has no area": entry(bbox=(1, 2, 3, -4)),
    r"bbox \[390, 2, 20, 4\] reaches outside its image of 400 x 400": entry(bbox=(390, 2, 20, 4)),
    r"bbox \[500, 2, 20, 4\] reaches outside": entry(bbox=(500, 2, 20, 4)),
    r"bbox \[400, 2, 1, 4\] reaches outside": entry(bbox=(400, 2, 1, 4)),
    "lacks": {"image_id": 1, "category_id": 1},
}


@pytest.mark.parametrize("message", WRONG)
@pytest.mark.parametrize("form", ["results.json", "records.jsonl"])
def test_wrong_detections_are_named(message, form, tmp_path):
    path, wrong = tmp_path / form, WRONG[message]
    if form == "results.json":
        path.write_text(json.dumps([entry(), wrong]))
        place = f"{path}: result 1"
    else:
        own = {"image_id": wrong["image_id"], "instances": [wrong]}
        path.write_text(json.dumps(own) + "\n")
        place = f"{path}:1"
    with pytest.raises(ValueError, match=message) as raised:
        read_detections(path, tags_of([0]))
    assert str(raised.value).startswith(place)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("d.json", "[]", "no detection in it"),
        ("d.jsonl", "", "no detection in it"),
        ("d.json", '{"annotations": []}', "no list of COCO results"),
        ("d.json", "[1]", "result 0 lacks"),
        ("d.jsonl", '{"image_id": 1, "inst', "cut off"),
        ("d.jsonl", '{"image_id": 1, "instances": 3}\n', "instances are no list"),
        ("d.jsonl", '{"image_id": 1, "instances": []}\n' * 2, "has a record already"),
    ],
)
def test_wrong_detection_files_are_named(name, content, message, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message) as raised:
        read_detections(tmp_path / name, tags_of([0]))
    assert str(raised.value).startswith(str(tmp_path / name))
    with pytest.raises(FileNotFoundError, match="expected detections"):
        read_detections(tmp_path / f"no_{name}", tags_of([0]))
