"""Streaming json against the json module, and errors that name file and entry."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weaklabels import json_stream
from weaklabels.coco import CocoFile, CocoWriter
from weaklabels.files import atomic_text
from weaklabels.records import read_records

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.text(max_size=12), VALUES, max_size=4),
    st.lists(VALUES, max_size=5),
    st.integers(1, 40),
    st.sampled_from([None, 2]),
)
def test_chunked_reading_equals_the_json_module(tmp_path_factory, sections, entries, chunk, indent):
    wanted = {**sections, "annotations": entries, "after": 12.5}
    path = tmp_path_factory.getbasetemp() / "chunked.json"
    path.write_text(json.dumps(wanted, indent=indent), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "CHUNK", chunk)
        found = list(json_stream.walk_object(path, "annotations"))
    assert [value for _, value, is_entry in found if is_entry] == entries
    others = {name: value for name, value, is_entry in found if not is_entry}
    assert others == wanted | {"annotations": []}


def test_annotations_and_sections_are_those_of_the_file(coco, coco_path):
    source = CocoFile(coco_path)
    assert list(source.annotations()) == coco["annotations"]
    assert list(source.annotations()) == coco["annotations"]  # each call reads anew
    assert source.header == {k: v for k, v in coco.items() if k != "annotations"}
    assert source.category_ids == [3, 7, 20]


def test_writer_and_reader_are_inverse(coco, tmp_path):
    header = {k: v for k, v in coco.items() if k != "annotations"}
    with atomic_text(tmp_path / "a" / "out.json") as handle:
        writer = CocoWriter(handle, header, "a.json")
        for annotation in coco["annotations"]:
            writer.add(annotation)
        writer.close()
    assert json.loads((tmp_path / "a" / "out.json").read_text()) == coco


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "out.json"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_text(path) as handle:
        handle.write("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("categories"), "categories"),
        (lambda d: d.update(annotations={}), "annotations"),
        (lambda d: d["images"][0].pop("width"), "image id 101 lacks .'width'"),
        (lambda d: d["categories"][1].pop("name"), "category id 7 lacks .'name'"),
        (lambda d: d["images"].append(d["images"][0]), "image id 101 occurs twice"),
        (lambda d: d["categories"][1].pop("id"), "category number 1 has no"),
    ],
)
def test_broken_sections_are_errors(coco, tmp_path, change, message):
    change(coco)
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(coco))
    with pytest.raises(ValueError, match=f"broken.json: .*{message}"):
        CocoFile(path)


@pytest.mark.parametrize("text", ["", "[]", '{"images": [', '{"images": []', "{1: 2}", '{"a" 1}'])
def test_what_is_no_json_object_is_an_error(tmp_path, text):
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="broken.json: not a json object"):
        CocoFile(path)


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent.json"):
        CocoFile(tmp_path / "absent.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": None}, "no integer 'id'"),
        ({"id": 5}, "annotation id 5: occurs twice"),
        ({"image_id": 7}, "annotation id 10: image_id 7"),
        ({"image_id": [7]}, "annotation id 10: image_id .7."),
        ({"category_id": 99}, "annotation id 10: category_id 99"),
    ],
)
def test_invalid_annotations_are_errors_or_listed(coco, tmp_path, change, message):
    coco["annotations"][1].update(change)
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(coco))
    with pytest.raises(ValueError, match=message):
        list(CocoFile(path).annotations())
    source = CocoFile(path, skip_invalid=True)
    kept = list(source.annotations())
    assert kept == coco["annotations"][:1] + coco["annotations"][2:]
    assert len(source.skipped) == 1


RECORD = {"image_id": 1, "file_name": "a.jpg", "height": 4, "width": 5, "instances": []}


def test_records_are_read_line_by_line(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text("".join(json.dumps({**RECORD, "image_id": i}) + "\n" for i in range(3)))
    assert [(w, r["image_id"]) for w, r in read_records(path)] == [
        (f"{path}:{i + 1}", i) for i in range(3)
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"image_id": 1, "fi', "r.jsonl:2: not a json record .*cut off"),
        ("{}\n", "r.jsonl:2: the record lacks .'image_id'"),
        ("[]\n", "r.jsonl:2: the record lacks"),
        (json.dumps({**RECORD, "instances": [{"score": 1}]}), "r.jsonl:2: instance 0 lacks"),
        (
            json.dumps(
                {**RECORD, "instances": [{"category_id": 1, "segmentation": {}, "score": "x"}]}
            ),
            "r.jsonl:2: instance 0: score 'x'",
        ),
    ],
)
def test_broken_records_are_errors_that_name_the_line(tmp_path, line, message):
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps(RECORD) + "\n" + line)
    with pytest.raises(ValueError, match=message):
        list(read_records(path))
