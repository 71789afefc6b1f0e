"""Merged label files: against the reference's, by a slow merge in memory, and what is refused."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from tests.programs import merge_labels as main
from tests.weaklabels.coco_samples import HEIGHT, WIDTH, compressed, decoded, make_coco, random_mask

GOLDEN = Path(__file__).parents[1] / "golden" / "merge"


def load(path):
    return json.loads(Path(path).read_text())


def write_records(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def as_record(image, instances):
    keys = ("file_name", "height", "width")
    return {"image_id": image["id"], **{k: image[k] for k in keys}, "instances": instances}


@pytest.fixture
def files(tmp_path):
    """(strong, weak, records) paths, and the records: 5 strong and 8 weak images."""
    coco, rng = make_coco(num_images=13, seed=2), np.random.default_rng(2)
    images = coco.pop("images")
    labels = coco.pop("annotations")
    weak_ids = {i["id"] for i in images[5:]}
    strong = coco | {
        "images": images[:5],
        "annotations": [a for a in labels if a["image_id"] not in weak_ids],
    }
    weak = coco | {
        "images": images[5:],
        "annotations": [
            {"id": a["id"], "image_id": a["image_id"], "category_id": 3, "point": [1, 2]}
            for a in labels
            if a["image_id"] in weak_ids
        ],
    }
    records = []
    for image in images[6:]:  # the first weak image has no record
        instances = [
            {
                "category_id": int(rng.choice([3, 7, 20])),
                "score": round(float(rng.random()), 3),
                "point": [float(rng.random()), 2.0],
                "segmentation": compressed(random_mask(rng)),
            }
            for _ in range(int(rng.integers(0, 4)))
        ]
        records.append(as_record(image, instances))
    for name, content in (("s.json", strong), ("w.json", weak)):
        (tmp_path / name).write_text(json.dumps(content))
    path = write_records(tmp_path / "r.jsonl", records)
    return tmp_path / "s.json", tmp_path / "w.json", path, records


def merge(strong, records, out, *args):
    flags = ["--strong-json", strong, "--records", records, "--output", out, *args]
    return main([str(flag) for flag in flags])


def slow_merge(strong, weak, records, min_score):
    labels = [*strong["annotations"]]
    for record in records:
        for instance in record["instances"]:
            ys, xs = np.nonzero(decoded(instance))
            if instance["score"] < min_score:
                continue
            x, y = int(xs.min()), int(ys.min())
            box = [x, y, int(xs.max()) - x + 1, int(ys.max()) - y + 1]
            fields = {"image_id": record["image_id"], "iscrowd": 0, "bbox": box, "area": len(xs)}
            labels.append(instance | fields)
    labels = [label | {"id": number} for number, label in enumerate(labels, 1)]
    return strong | {"images": strong["images"] + weak["images"], "annotations": labels}


@pytest.mark.parametrize("min_score", [-1.0, 0.5])
def test_equals_a_merge_in_memory(files, tmp_path, min_score):
    strong, weak, path, records = files
    out = tmp_path / "out" / "sw.json"
    words = ("--weak-json", weak, "--min-score", min_score, "--allow-missing")
    assert merge(strong, path, out, *words) == 0
    assert load(out) == slow_merge(load(strong), load(weak), records, min_score)


def test_without_a_weak_file_the_records_name_the_images(files, tmp_path):
    strong, _, path, records = files
    assert merge(strong, path, tmp_path / "sw.json") == 0
    merged = load(tmp_path / "sw.json")
    want = [r["image_id"] for r in records]
    assert [i["id"] for i in merged["images"][5:]] == want  # those with no label are kept
    assert set(merged["images"][5]) == {"id", "file_name", "height", "width"}


@pytest.mark.parametrize("kept", [0, 1, 6])
def test_records_of_a_run_that_was_cut_off_are_refused(files, tmp_path, capsys, kept):
    strong, weak, path, records = files
    out = tmp_path / "sw.json"
    out.write_text("what a run before wrote")
    write_records(path, records[:kept])
    assert merge(strong, path, out, "--weak-json", weak) == 2
    message = capsys.readouterr().err
    fault = f"{kept} of the 8 weak images" if kept else "is empty"
    assert str(path) in message and fault in message
    assert "--allow-missing" in message or not kept
    assert out.read_text() == "what a run before wrote"


def test_empty_masks_are_left_out_and_counted(files, tmp_path, capsys):
    strong, weak, path, records = files
    empty = compressed(np.zeros((HEIGHT, WIDTH), np.uint8))
    instance = {"category_id": 3, "score": 0.5, "segmentation": empty}
    records = [as_record(load(weak)["images"][0], [instance])]
    write_records(path, records)
    words = ("--weak-json", weak, "--allow-missing")
    assert merge(strong, path, tmp_path / "sw.json", *words) == 0
    assert "+ 0 pseudo labels" in capsys.readouterr().out
    assert len(load(tmp_path / "sw.json")["annotations"]) == len(load(strong)["annotations"])


def change_line(records, index, **change):
    return [*records[:index], records[index] | change, *records[index + 1 :]]


def with_instance(records, **change):
    base = {"category_id": 3, "score": 1, "segmentation": {"size": [30, 40], "counts": [0, 1200]}}
    return change_line(records, 2, instances=[base | change])


BAD_RECORDS = [
    (lambda r: [*r, r[1]], "r.jsonl:8: image 108 has a record already"),
    (lambda r: change_line(r, 3, image_id=999), "r.jsonl:4: image 999 is in neither"),
    (lambda r: change_line(r, 3, image_id=101), "r.jsonl:4: image 101 has strong labels"),
    (
        lambda r: change_line(r, 3, height=31, instances=[]),
        "r.jsonl:4: image 110 is 31 x 40 here, 30 x 40",
    ),
    (lambda r: change_line(r, 3, height=31), "r.jsonl:4: instance 0: RLE of size [30, 40]"),
    (lambda r: with_instance(r, category_id=4), "r.jsonl:3: instance 0: category_id 4"),
    (lambda r: with_instance(r, segmentation=[]), "r.jsonl:3: instance 0: no mask"),
    (
        lambda r: with_instance(r, segmentation={"size": [9, 9], "counts": [81]}),
        "r.jsonl:3: instance 0: RLE of size",
    ),
    (lambda r: with_instance(r, score=float("nan")), "r.jsonl:3: instance 0: score nan"),
]


@pytest.mark.parametrize(("change", "message"), BAD_RECORDS)
def test_bad_records_are_refused_by_line_and_nothing_is_written(
    files, tmp_path, capsys, change, message
):
    strong, weak, path, records = files
    write_records(path, change(records))
    assert merge(strong, path, tmp_path / "sw.json", "--weak-json", weak) == 2
    assert message in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.jsonl", "s.json", "w.json"]


def test_duplicates_are_refused_without_a_weak_file_too(files, tmp_path, capsys):
    strong, _, path, records = files
    write_records(path, [*records, records[0]])
    assert merge(strong, path, tmp_path / "sw.json") == 2
    assert "r.jsonl:8: image 107 has a record already" in capsys.readouterr().err


def test_an_image_in_both_files_is_refused(files, tmp_path, capsys):
    strong, _, path, _ = files
    assert merge(strong, path, tmp_path / "sw.json", "--weak-json", strong) == 2
    error = capsys.readouterr().err
    assert "5 images have strong labels" in error
    assert "'101.jpg'" in error and "--categories" in error  # how ids are kept apart


def test_a_missing_file_is_named(files, tmp_path, capsys):
    strong, weak, _, _ = files
    assert merge(strong, tmp_path / "no.jsonl", tmp_path / "o.json", "--weak-json", weak) == 2
    assert "no.jsonl: no such file" in capsys.readouterr().err


def test_memory_does_not_grow_with_the_labels(files, tmp_path):
    strong, weak, path, _ = files
    rng = np.random.default_rng(0)
    image = load(weak)["images"][0]
    mask = compressed(rng.integers(0, 2, (HEIGHT, WIDTH), dtype=np.uint8))
    instance = {"category_id": 3, "score": 0.5, "segmentation": mask}
    big = load(weak) | {"annotations": []}
    big["images"] = [image | {"id": 1000 + i} for i in range(200)]
    weak.write_text(json.dumps(big))
    write_records(path, [as_record(i, [instance] * 20) for i in big["images"]])
    out = tmp_path / "sw.json"
    tracemalloc.start()
    try:
        assert merge(strong, path, out, "--weak-json", weak) == 0
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert out.stat().st_size > 2_500_000
    assert peak < 1_500_000


def golden_records(tmp_path, labels):
    """The reference's predictions as records; `labels` gives each its (refined) mask."""
    images = {i["id"]: i for i in load(GOLDEN / "tiny_sw.json")["images"]}
    categories = sorted(c["id"] for c in load(GOLDEN / "tiny_sw.json")["categories"])
    records = []
    for prediction in load(GOLDEN / "pred_weak.json"):
        image = images[prediction["image_id"]]
        if not prediction["instances"]:
            continue  # padding of the reference's distributed sampler: a strong image, no result
        instances = []
        for found, label in zip(prediction["instances"], labels, strict=True):
            y, x = (v / 10000 for v in found["bbox"][:2])
            assert categories[found["category_id"]] == label["category_id"]
            instances.append(
                {
                    "category_id": label["category_id"],
                    "score": found["score"],
                    "point": [x * image["width"], y * image["height"]],
                    "segmentation": label["segmentation"],
                }
            )
        records.append(as_record(image, instances))
    return write_records(tmp_path / "golden.jsonl", records)


@pytest.mark.parametrize("name", ["tiny_sw.json", "tiny_sw_refined.json"])
def test_the_reference_s_merged_files(tmp_path, name):
    """Equal but for the reference's defects: its boxes are one pixel short and it drops scores."""
    want = load(GOLDEN / name)
    pseudo = [a for a in want["annotations"] if a["image_id"] == 632]
    strong, weak = (GOLDEN / f"instances_train2017_tiny_{kind}.json" for kind in "sw")
    records = golden_records(tmp_path, pseudo)
    assert merge(strong, records, tmp_path / "sw.json", "--weak-json", weak) == 0
    got = load(tmp_path / "sw.json")
    for part in (got, want):  # the reference's two tools disagree on the order of images
        part["images"].sort(key=lambda image: image["id"])
    sections = ("info", "licenses", "categories", "images")
    assert all(got[key] == want[key] for key in sections)
    assert len(got["annotations"]) == len(want["annotations"]) == 10
    for ours, theirs in zip(got["annotations"], want["annotations"], strict=True):
        if theirs["image_id"] == 632:
            assert ours.pop("score") == 1.0
            assert len(ours.pop("point")) == 2
            x, y, w, h = theirs["bbox"]
            theirs["bbox"] = [x, y, w + 1, h + 1]
        assert ours == theirs


def test_merged_files_keep_their_bytes(tmp_path):
    strong, weak = (GOLDEN / f"instances_train2017_tiny_{kind}.json" for kind in "sw")
    records, out = GOLDEN / "records.jsonl", tmp_path / "sw.json"
    assert merge(strong, records, out, "--weak-json", weak) == 0
    assert out.read_bytes() == (GOLDEN / "merged.json").read_bytes()
    flags = ["--annotations", strong, "--weak-annotations", weak, "--records", records]
    again = tmp_path / "again.json"
    assert main([str(flag) for flag in [*flags, "--output", again]]) == 0
    assert again.read_bytes() == out.read_bytes()


def test_a_merge_does_not_read_boxes_and_areas_of_records(tmp_path):
    strong, weak = (GOLDEN / f"instances_train2017_tiny_{kind}.json" for kind in "sw")
    records = [json.loads(line) for line in (GOLDEN / "records.jsonl").read_text().splitlines()]
    for record in records:
        for instance in record["instances"]:
            instance |= {"bbox": [1.0, 2.0, 3.0, 4.0], "area": 5}
    path = write_records(tmp_path / "r.jsonl", records)
    assert merge(strong, path, tmp_path / "sw.json", "--weak-json", weak) == 0
    assert (tmp_path / "sw.json").read_bytes() == (GOLDEN / "merged.json").read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c[1:], "category id 3 is missing in"),
        (lambda c: [*c, {"id": 21, "name": "new"}], "category id 21 is 'new' in"),
        (lambda c: [c[0], {"id": 7, "name": "a"}, {"id": 20, "name": "b"}], "id 7 is 'a' in"),
    ],
)
def test_other_categories_in_the_weak_file_are_refused(files, tmp_path, capsys, change, message):
    strong, weak, path, _ = files
    content = load(weak)
    weak.write_text(json.dumps(content | {"categories": change(content["categories"])}))
    assert merge(strong, path, tmp_path / "sw.json", "--weak-json", weak) == 2
    error = capsys.readouterr().err
    assert message in error and str(strong) in error and str(weak) in error
    assert "import_points.py" in error and "--categories" in error
    assert not (tmp_path / "sw.json").exists()


def test_order_and_further_keys_of_categories_may_differ(files, tmp_path):
    strong, weak, path, _ = files
    content = load(weak)
    categories = [c | {"supercategory": "thing"} for c in reversed(content["categories"])]
    weak.write_text(json.dumps(content | {"categories": categories}))
    assert merge(strong, path, tmp_path / "sw.json", "--weak-json", weak, "--allow-missing") == 0
    assert load(tmp_path / "sw.json")["categories"] == load(strong)["categories"]
