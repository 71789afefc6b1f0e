"""One reader for every form of prediction record, and what it refuses."""

import json

import numpy as np
import pytest

from tests.weaklabels.coco_samples import compressed, uncompressed
from weaklabels.coco import Annotations, ImageInfo
from weaklabels.files import dumps
from weaklabels.masks import decode_mask
from weaklabels.records import instance_point, mask_instances, read_records, result_records

HEIGHT, WIDTH = 20, 30
INFO = ImageInfo(8, "a.jpg", HEIGHT, WIDTH)
CATEGORIES = ({"id": 3, "name": "cat"}, {"id": 7, "name": "dog"})
ANNOTATIONS = Annotations("truth.json", CATEGORIES, {8: INFO, 9: INFO}, {8: [], 9: []})


def mask(x=4):
    result = np.zeros((HEIGHT, WIDTH), np.uint8)
    result[5:9, x : x + 6] = 1
    return result


def a_record(**change):
    instances = mask_instances(
        np.stack([mask(), mask(12)]), [3, 7], [0.5, 1.0], [(6.5, 7), (14, 6)]
    )
    record = {"image_id": 8, "file_name": "a.jpg", "height": HEIGHT, "width": WIDTH}
    return record | {"instances": instances} | change


def with_instance(**change):
    record = a_record()
    record["instances"][1] |= change
    return record


def write(path, *records):
    path.write_text("".join(dumps(record) + "\n" for record in records))
    return path


def test_every_form_gives_the_same_record(tmp_path):
    record = a_record()
    ((where, got),) = read_records(write(tmp_path / "r.jsonl", record))
    assert got == record and where.endswith("r.jsonl:1")
    flat = [{"image_id": 8, **instance} for instance in record["instances"]]
    (tmp_path / "results.json").write_text(dumps(flat))
    assert [r for _, r in read_records(tmp_path / "results.json", ANNOTATIONS)] == [record]
    encoded = []
    for instance in record["instances"]:
        x, y = instance["point"]
        box = [y * 10000 / HEIGHT, x * 10000 / WIDTH]
        encoded.append(
            {
                "category_id": [3, 7].index(instance["category_id"]),
                "score": instance["score"],
                "bbox": [*box, -box[0], -box[1]],
                "segmentation": instance["segmentation"],
            }
        )
    nested = [{"image_id": 8, "instances": encoded}, {"image_id": 99, "instances": []}]
    ((_, got),) = result_records(nested, "predictions.pth", ANNOTATIONS)
    for ours, theirs in zip(got["instances"], record["instances"], strict=True):
        assert ours.pop("point") == pytest.approx(theirs.pop("point"))
        assert ours == theirs


def test_boxes_of_records_are_floats():
    (instance,) = mask_instances(mask()[None], [3], [0.5], [None])
    assert instance["bbox"] == [4.0, 5.0, 6.0, 4.0] and "point" not in instance
    assert all(isinstance(value, float) for value in instance["bbox"])
    assert list(instance) == ["category_id", "score", "bbox", "area", "segmentation"]
    assert mask_instances(mask()[:0].reshape(0, HEIGHT, WIDTH), [], [], []) == []


def test_a_point_is_the_stored_one_or_the_mask_s_center():
    (with_point,) = mask_instances(mask()[None], [3], [0.5], [(1, 2)])
    assert instance_point(with_point, HEIGHT, WIDTH) == [1.0, 2.0]
    del with_point["point"]
    assert instance_point(with_point, HEIGHT, WIDTH) == [6.5, 6.5]
    empty = {"segmentation": compressed(np.zeros((HEIGHT, WIDTH), np.uint8))}
    assert instance_point(empty, HEIGHT, WIDTH) == [15.0, 10.0]


def test_every_coco_form_of_mask_is_read(tmp_path):
    forms = [compressed(mask()), uncompressed(mask()), [[4, 5, 10, 5, 10, 9, 4, 9]]]
    instances = [{"category_id": 3, "score": 1, "segmentation": form} for form in forms]
    ((_, record),) = read_records(write(tmp_path / "r.jsonl", a_record(instances=instances)))
    for instance in record["instances"]:
        np.testing.assert_array_equal(decode_mask(instance["segmentation"], HEIGHT, WIDTH), mask())


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (with_instance(score=None), "instance 1: score None"),
        (with_instance(score=True), "instance 1: score True"),
        (with_instance(category_id="dog"), "instance 1: category_id 'dog'"),
        (with_instance(segmentation={"size": [1, 1], "counts": "01"}), "instance 1: RLE of size"),
        (
            with_instance(segmentation={"size": [HEIGHT, WIDTH], "counts": "zzzz"}),
            "instance 1: RLE counts are cut off",
        ),
        (with_instance(segmentation=[[0, 0, 1e9, 0, 5, 5]]), "instance 1: a polygon lies farther"),
        *(
            (with_instance(point=point), r"instance 1: point is not \[x, y\]")
            for point in (4, [1], [None, 1], ["a", 1], None)
        ),
        (a_record(image_id="8"), "image_id '8'"),
        (a_record(file_name=None), "file_name None"),
        (a_record(height=20.0), "height 20.0 and width 30"),
        (a_record(width=10**9), "height 20 and width 1000000000"),
        (a_record(instances=None), "instances are not a list"),
        (a_record(instances=[3]), "instance 0 lacks"),
    ],
)
def test_unusable_records_are_named(tmp_path, record, message):
    path = write(tmp_path / "bad.jsonl", a_record(image_id=1, instances=[]), record)
    with pytest.raises(ValueError, match=f"bad.jsonl:2: {message}"):
        list(read_records(path))


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999", "9" * 400])
def test_numbers_that_are_not_finite_are_named(tmp_path, value):
    text = dumps(a_record())
    path = tmp_path / "bad.jsonl"
    path.write_text(text.replace('"score":0.5', f'"score":{value}'))
    with pytest.raises(ValueError, match="bad.jsonl:1: instance 0: score"):
        list(read_records(path))
    path.write_text(text.replace('"point":[6.5,7.0]', f'"point":[{value},7.0]'))
    with pytest.raises(ValueError, match="bad.jsonl:1: instance 0: point is not finite"):
        list(read_records(path))


def test_an_image_has_one_record(tmp_path):
    path = write(tmp_path / "r.jsonl", a_record(), a_record(image_id=9), a_record())
    with pytest.raises(ValueError, match="r.jsonl:3: image 8 has a record already"):
        list(read_records(path))


@pytest.mark.parametrize(
    "text", [b"\xff\xfe\n", b"{}{}\n", b"1\n", b'{"a":' * 99999 + b"\n", b"\n"]
)
def test_lines_that_are_no_records_are_named(tmp_path, text):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(text + b"\n")
    with pytest.raises(ValueError, match="bad.jsonl:1: "):
        list(read_records(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "expected a list"),
        ([3], "expected a list"),
        ([{"instances": [], "image_id": 5}, {"image_id": 5, "instances": [{}]}], "image 5: is not"),
        ([{"image_id": 8, "segmentation": compressed(mask())}], "image 8: lacks 'category_id'"),
        ([{"image_id": None}], "result 0: image_id None"),
        ([{"image_id": 8, "instances": [{"category_id": 2}]}], "image 8: class 2; truth.json has"),
        ([{"image_id": 8, "instances": [{"category_id": "a"}]}], "image 8: "),
    ],
)
def test_unusable_result_lists_are_named(tmp_path, content, message):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"results.json: {message}"):
        list(read_records(path, ANNOTATIONS))


def test_result_lists_need_an_annotation_file(tmp_path):
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(ValueError, match="results.json: .*--annotations"):
        list(read_records(tmp_path / "results.json"))
    with pytest.raises(FileNotFoundError, match="nowhere.jsonl"):
        list(read_records(tmp_path / "nowhere.jsonl"))
