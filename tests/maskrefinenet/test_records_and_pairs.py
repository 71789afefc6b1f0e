import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskrefinenet.pairs import match_predictions
from maskrefinenet.predictions import read_predictions
from weaklabels.coco import Annotations, ImageInfo, load_annotations
from weaklabels.evaluate import records_ap
from weaklabels.files import dumps
from weaklabels.masks import encode_mask


@pytest.fixture(scope="module")
def strong(tinycoco):
    return load_annotations(tinycoco / "instances_train2017_tiny_s.json")


@pytest.fixture(scope="module")
def weak(tinycoco):
    return load_annotations(tinycoco / "instances_train2017_tiny_w.json")


def test_every_format_gives_the_same_records(tinycoco, weak, tmp_path):
    (want,) = read_predictions(tinycoco / "pred_weak.pth", weak)
    assert list(read_predictions(tinycoco / "pred_weak.json", weak)) == [want]
    lines = tmp_path / "weak.jsonl"
    lines.write_text(dumps(want) + "\n")
    assert list(read_predictions(lines)) == [want]
    flat = [{"image_id": want["image_id"], **instance} for instance in want["instances"]]
    results = tmp_path / "coco_instances_results.json"
    results.write_text(json.dumps(flat))
    assert list(read_predictions(results, weak)) == [want]


def test_encoded_points_and_contiguous_classes_are_translated(tinycoco, weak):
    (record,) = read_predictions(tinycoco / "pred_weak.pth", weak)
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
        (record,) = read_predictions(path, weak)
        assert record["instances"][0]["point"] == [35.0, 14.5]


def test_unusable_files_are_named(tmp_path, tinycoco, weak):
    with pytest.raises(ValueError, match="pred.txt: expected a .jsonl"):
        list(read_predictions(tmp_path / "pred.txt", weak))
    with pytest.raises(ValueError, match="pred_weak.pth: .*annotation file"):
        list(read_predictions(tinycoco / "pred_weak.pth"))
    with pytest.raises(ValueError, match="pred_strong1.pth: image 139: is not among"):
        list(read_predictions(tinycoco / "pred_strong1.pth", weak))
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    (tmp_path / "junk.pth").write_bytes(b"junk")
    with pytest.raises(ValueError, match="junk.pth: cannot be read"):
        list(read_predictions(tmp_path / "junk.pth", weak))
    with pytest.raises(ValueError, match="broken.json: not a json object"):
        load_annotations(broken)
    broken.write_text('{"images": []}')
    with pytest.raises(ValueError, match="broken.json: no list 'annotations'"):
        load_annotations(broken)


def test_the_nearest_rule_is_the_reference_s(tinycoco, strong):
    """It numbers the predictions of both files in one sequence an image; points are (y, x)."""
    files = [
        list(read_predictions(tinycoco / f"pred_strong{number}.pth", strong)) for number in (1, 2)
    ]
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
    records = list(read_predictions(tinycoco / "pred_strong2.pth", strong))
    assert len(match_predictions(records, strong, rule="nearest")) == 2
    (pair,) = match_predictions(records, strong)
    assert (pair.image.image_id, pair.target_index) == (285, 0)


def scene(centres: list[tuple[int, int]], crowd: int | None = None) -> Annotations:
    """5 x 5 squares of one class at (x, y) centres on a 64 x 64 image."""
    rows = []
    for number, (x, y) in enumerate(centres):
        mask = np.zeros((64, 64), dtype=np.uint8)
        mask[y - 2 : y + 3, x - 2 : x + 3] = 1
        row = {"id": number, "image_id": 1, "category_id": 7, "segmentation": encode_mask(mask)}
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
    with pytest.raises(ValueError, match="scene.json: annotation id 0 has no mask"):
        match_predictions(predictions([(9.0, 9.0)]), bare)


@pytest.mark.parametrize("wrong", [[[1, 1, 5, 5]], {"size": [64, 64], "counts": [3, 2]}])
def test_unusable_masks_name_file_and_annotation(wrong):
    broken, records = scene([(9, 9)]), predictions([(9.0, 9.0)])
    broken.instances[1][0]["segmentation"] = wrong
    for use in (match_predictions, records_ap):
        with pytest.raises(ValueError, match="scene.json: annotation id 0: .*correct or remove it"):
            use(records, broken)
