import itertools
import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskrefinenet.annotations import Annotations, ImageInfo, encode_mask, load_annotations, to_rle
from maskrefinenet.evaluate import evaluate_records
from maskrefinenet.pairs import match_predictions
from maskrefinenet.records import read_records, write_line


@pytest.fixture(scope="module")
def strong(tinycoco):
    return load_annotations(tinycoco / "instances_train2017_tiny_s.json")


@pytest.fixture(scope="module")
def weak(tinycoco):
    return load_annotations(tinycoco / "instances_train2017_tiny_w.json")


def test_every_format_gives_the_same_records(tinycoco, weak, tmp_path):
    (want,) = read_records(tinycoco / "pred_weak.pth", weak)
    assert list(read_records(tinycoco / "pred_weak.json", weak)) == [want]
    lines = tmp_path / "weak.jsonl"
    lines.write_text(write_line(want))
    assert list(read_records(lines)) == [want]
    flat = [{"image_id": want["image_id"], **instance} for instance in want["instances"]]
    results = tmp_path / "coco_instances_results.json"
    results.write_text(json.dumps(flat))
    assert list(read_records(results, weak)) == [want]


def test_encoded_points_and_contiguous_classes_are_translated(tinycoco, weak):
    (record,) = read_records(tinycoco / "pred_weak.pth", weak)
    first = record["instances"][0]
    assert first["point"] == pytest.approx([0.2822 * 140, 0.4945 * 100])  # stored as (y, x)
    assert [instance["category_id"] for instance in record["instances"]] == [1, 13, 13]
    assert first["bbox"] == [15, 21, 54, 64] and first["area"] == 3456


def test_absent_and_lost_points_are_the_mask_s_centre(tmp_path, weak):
    mask = np.zeros((100, 140), dtype=np.uint8)
    mask[10:20, 30:41] = 1
    result = {"image_id": 632, "category_id": 1, "segmentation": encode_mask(mask), "score": 1.0}
    path = tmp_path / "results.json"
    for extra in ({}, {"bbox": [0.0, 0.0, -0.0, -0.0]}, {"bbox": [30.0, 10.0, 11.0, 10.0]}):
        path.write_text(json.dumps([{**result, **extra}]))
        (record,) = read_records(path, weak)
        assert record["instances"][0]["point"] == [35.0, 14.5]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1: not a JSON object"),
        ("[]", "line 1: the record has no image_id"),
        ('{"image_id": 1, "file_name": "a", "height": 2, "width": 2}', "has no instances"),
        (
            '{"image_id": 1, "file_name": "a", "height": 2, "width": 2, "instances": [{}]}',
            "instance 0 has no category_id, segmentation",
        ),
        (
            '{"image_id": 1, "file_name": "a", "height": 2, "width": 2, "instances": '
            '[{"category_id": 1, "segmentation": {"size": [3, 2], "counts": "06"}}]}',
            r"instance 0: segmentation has size \[3, 2\], its image \[2, 2\]",
        ),
        (
            '{"image_id": 1, "file_name": "a", "height": 2, "width": 3, "instances": '
            '[{"category_id": 1, "point": 4, "segmentation": {"size": [2, 3], "counts": "06"}}]}',
            "point=4; expected",
        ),
    ],
)
def test_unusable_lines_are_named(tmp_path, line, message):
    path = tmp_path / "bad.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(ValueError, match=f"bad.jsonl, line 1.*{message.removeprefix('line 1: ')}"):
        list(read_records(path))


@pytest.mark.parametrize("point", ["[null, 1]", '["a", 1]', "[NaN, 1]", "[1, Infinity]", "[1]"])
def test_points_that_are_no_pixels_are_named(tmp_path, weak, point):
    mask = '"segmentation": {"size": [100, 140], "counts": "`e="}'
    instance = f'"category_id": 1, "point": {point}, {mask}'
    image = '"image_id": 632, "file_name": "a", "height": 100, "width": 140'
    lines, results = tmp_path / "bad.jsonl", tmp_path / "bad.json"
    lines.write_text(f'{{{image}, "instances": [{{{instance}}}]}}')
    with pytest.raises(
        ValueError, match=r"bad.jsonl, line 1: instance 0: point=.*expected \[x, y\]"
    ):
        list(read_records(lines))
    results.write_text(f'[{{"image_id": 632, {instance}}}]')
    with pytest.raises(ValueError, match=r"bad.json: image 632: point=.*expected \[x, y\]"):
        list(read_records(results, weak))


IMAGE = {"id": 1, "file_name": "a", "height": 5, "width": 6}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"annotations": None}, "annotations is no list but NoneType"),
        ({"images": None}, "images is no list but NoneType"),
        ({"categories": {}}, "categories is no list but dict"),
        ({"annotations": [3]}, "entry 0 of annotations is no object but int"),
        ({"images": [{"id": 1}]}, "entry 0 of images has no 'file_name'"),
        ({"categories": [{"name": "a"}]}, "entry 0 of categories has no 'id'"),
        ({"categories": [{"id": 2}, {"id": 2}]}, "categories has the id 2 twice"),
        ({"images": [IMAGE, IMAGE]}, "images has the id 1 twice"),
        ({"annotations": [{"id": 4, "image_id": 1}] * 2}, "annotations has the id 4 twice"),
        ({"annotations": [{"id": 4, "image_id": 9}]}, "annotation 4 is of image 9, which is not"),
    ],
)
def test_unusable_annotation_files_are_named(tmp_path, wrong, message):
    path = tmp_path / "coco.json"
    path.write_text(json.dumps({"images": [IMAGE], "categories": [{"id": 1}], **wrong}))
    with pytest.raises(ValueError, match=f"coco.json: {re.escape(message)}.*[;:] "):
        load_annotations(path)


def test_annotations_may_lack_ids(tmp_path):
    path = tmp_path / "coco.json"
    rows = [{"image_id": 1, "category_id": 1}] * 2
    path.write_text(json.dumps({"images": [IMAGE], "categories": [{"id": 1}], "annotations": rows}))
    assert load_annotations(path).instances == {1: rows}


def test_unusable_files_are_named(tmp_path, tinycoco, weak):
    with pytest.raises(ValueError, match="pred.txt: expected a .jsonl"):
        list(read_records(tmp_path / "pred.txt", weak))
    with pytest.raises(ValueError, match="pred_weak.pth: .*annotation file"):
        list(read_records(tinycoco / "pred_weak.pth"))
    with pytest.raises(ValueError, match="pred_strong1.pth: image 139: is not among"):
        list(read_records(tinycoco / "pred_strong1.pth", weak))
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    (tmp_path / "junk.pth").write_bytes(b"junk")
    with pytest.raises(ValueError, match="junk.pth: cannot be read"):
        list(read_records(tmp_path / "junk.pth", weak))
    with pytest.raises(ValueError, match="broken.json: not a JSON file"):
        load_annotations(broken)
    broken.write_text('{"images": []}')
    with pytest.raises(ValueError, match=r"broken.json.*\['categories'\]"):
        load_annotations(broken)


def test_the_nearest_rule_is_the_reference_s(tinycoco, strong):
    """It numbers the predictions of both files in one sequence an image; points are (y, x)."""
    files = [list(read_records(tinycoco / f"pred_strong{number}.pth", strong)) for number in (1, 2)]
    first = {record["image_id"]: len(record["instances"]) for record in files[0]}
    got = set()
    for number, records in enumerate(files):
        for pair in match_predictions(records, strong, rule="nearest"):
            offset = number * first[pair.image.image_id]
            got.add(
                (
                    pair.image.image_id,
                    pair.prediction_index + offset,
                    pair.target_index,
                    pair.class_index,
                    pair.point_xy[::-1],
                )
            )
    recorded = json.loads((tinycoco.parent / "mrn_matched_labels.json").read_text())
    rows = recorded["before_shuffle"]
    want = {
        (r["img_id"], r["pred_idx"], r["gt_idx"], r["category"], tuple(r["point"])) for r in rows
    }
    assert got == want


def test_one_to_one_leaves_out_what_is_too_far(tinycoco, strong):
    """The nearest rule gives the second file's first prediction an instance 60 pixels away."""
    records = list(read_records(tinycoco / "pred_strong2.pth", strong))
    assert len(match_predictions(records, strong, rule="nearest")) == 2
    (pair,) = match_predictions(records, strong)
    assert (pair.image.image_id, pair.target_index) == (285, 0)


def scene(centres: list[tuple[int, int]], crowd: int | None = None) -> Annotations:
    """5 x 5 squares of one class at (x, y) centres on a 64 x 64 image."""
    rows = []
    for number, (x, y) in enumerate(centres):
        mask = np.zeros((64, 64), dtype=np.uint8)
        mask[y - 2 : y + 3, x - 2 : x + 3] = 1
        row = {"id": number, "category_id": 7, "segmentation": encode_mask(mask)}
        rows.append({**row, "iscrowd": int(number == crowd)})
    info = ImageInfo(1, "a.png", 64, 64)
    return Annotations("scene.json", ({"id": 7, "name": "a"},), {1: info}, {1: rows})


def predictions(points: list[tuple[float, float]]) -> list[dict]:
    segmentation = encode_mask(np.ones((64, 64), dtype=np.uint8))
    instances = [
        {"category_id": 7, "point": list(point), "segmentation": segmentation} for point in points
    ]
    return [{"image_id": 1, "instances": instances}]


place = st.tuples(st.integers(2, 61), st.integers(2, 61))


@settings(max_examples=40, deadline=None)
@given(st.lists(place, max_size=4), st.lists(place, max_size=4))
def test_one_to_one_is_the_best_of_all_assignments(centres, points):
    reach = np.hypot(5, 5) / 2
    pairs = match_predictions(predictions(points), scene(centres))
    got = {(pair.prediction_index, pair.target_index) for pair in pairs}
    distance = {
        (i, j): float(np.hypot(p[0] - c[0], p[1] - c[1]))
        for i, p in enumerate(points)
        for j, c in enumerate(centres)
    }
    assert all(distance[pair] <= reach for pair in got)
    best = (0, 0.0)
    slots = [*range(len(centres)), *[None] * len(points)]
    for choice in set(itertools.permutations(slots, len(points))):
        costs = [distance[i, j] for i, j in enumerate(choice) if j is not None]
        if all(cost <= reach for cost in costs):
            best = min(best, (-len(costs), sum(costs)))
    total = sum(distance[pair] for pair in got)
    assert (-len(got), total) == (best[0], pytest.approx(best[1]))


def test_crowds_are_no_targets():
    assert match_predictions(predictions([(20.0, 20.0)]), scene([(20, 20)], crowd=0)) == []


def test_matching_names_what_is_missing(tinycoco, strong):
    with pytest.raises(ValueError, match="no image 5"):
        match_predictions([{"image_id": 5, "instances": []}], strong)
    with pytest.raises(ValueError, match="matching rule 'best'"):
        match_predictions([], strong, rule="best")
    bare = scene([(9, 9)])
    del bare.instances[1][0]["segmentation"]
    with pytest.raises(ValueError, match="scene.json: annotation 0 has no mask"):
        match_predictions(predictions([(9.0, 9.0)]), bare)


def test_every_coco_segmentation_form_is_read():
    polygon = [[1.0, 1.0, 4.0, 1.0, 4.0, 3.0, 1.0, 3.0]]
    compressed = to_rle(polygon, 5, 6)
    uncompressed = {"size": [5, 6], "counts": [6, 2, 3, 2, 3, 2, 12]}
    assert to_rle(uncompressed, 5, 6) == compressed
    text = {"size": [5, 6], "counts": compressed["counts"].decode()}
    assert to_rle(text, 5, 6) is text
    with pytest.raises(ValueError, match="expected polygons or an RLE"):
        to_rle({"counts": "0"}, 5, 6)


@pytest.mark.parametrize(
    "counts",
    [
        *([3, 2], [3, 28], [31, -1], [], [30.0], ["30"]),
        # The same mistakes compressed: 3 and 2, 31 and -1, nothing, a number cut off, no digit.
        *("32", "o0O", "", "n", "~", b"32", None),
    ],
)
def test_runs_that_do_not_fill_the_image_are_refused(counts):
    """pycocotools gives whatever lies in memory for the pixels without a run."""
    with pytest.raises(ValueError, match="RLE counts are"):
        to_rle({"size": [5, 6], "counts": counts}, 5, 6)


@given(st.integers(0, 2**30 - 1))
def test_runs_of_every_mask_fill_the_image(bits):
    mask = np.array([bits >> i & 1 for i in range(30)], dtype=np.uint8).reshape(5, 6)
    rle = encode_mask(mask)
    assert to_rle(rle, 5, 6) is rle


def test_long_runs_are_added_up_too():
    mask = np.zeros((1000, 3000), dtype=np.uint8)
    mask[400:, 700:2000] = mask[5:9, 2500:] = 1
    rle = encode_mask(mask)
    assert to_rle(rle, 1000, 3000) is rle


def test_polygons_without_three_corners_are_dropped_as_the_teacher_s_loader_does():
    good, line, odd = [1.0, 1.0, 4.0, 1.0, 4.0, 3.0, 1.0, 3.0], [1, 1, 5, 5], [1, 1, 4, 1, 4, 3, 1]
    want = to_rle([good], 5, 6)
    for polygons in ([line, good], [good, line], [good, odd]):
        assert to_rle(polygons, 5, 6) == want
    for polygons in ([line], [odd], [line, line], [1, 1, 4, 1, 4, 3]):
        with pytest.raises(ValueError, match="no polygon of at least three corners"):
            to_rle(polygons, 5, 6)


@pytest.mark.parametrize("wrong", [[[1, 1, 5, 5]], {"size": [64, 64], "counts": [3, 2]}])
def test_unusable_masks_name_file_and_annotation(wrong):
    broken, records = scene([(9, 9)]), predictions([(9.0, 9.0)])
    broken.instances[1][0]["segmentation"] = wrong
    for use in (match_predictions, evaluate_records):
        with pytest.raises(ValueError, match="scene.json: annotation 0: .*correct or remove it"):
            use(records, broken)
