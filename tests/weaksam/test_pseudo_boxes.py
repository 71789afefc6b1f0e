"""Pseudo boxes: the rules against loops and golden figures, files, and the command."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.weaksam.samples import detection_entry as entry
from tests.weaksam.samples import tags_of
from weaklabels.tags import write_tags
from weaksam.detections import Detections
from weaksam.pseudo_box_quality import measure_boxes, read_true_boxes
from weaksam.pseudo_boxes import AdaptiveRule, TopRule, select_boxes, write_pseudo_boxes
from wsis.benchmarks.pseudo_boxes import (
    measure,
    plain_adaptive,
    plain_selection,
    random_detections,
)
from wsis.cli.main import main

REFERENCE = AdaptiveRule(tie="reference")
# SPEC_WEAKSAM A4: class, score, box; and what stays, with normalized scores.
GIVEN = [
    (0, 0.60, [10, 10, 50, 50]),
    (0, 0.35, [200, 10, 40, 40]),
    (0, 0.15, [15, 15, 20, 20]),
    (0, 0.05, [300, 300, 20, 20]),
    (1, 0.08, [100, 100, 30, 30]),
    (1, 0.05, [150, 100, 30, 30]),
    (1, 0.01, [101, 101, 10, 10]),
    (2, 0.9, [50, 50, 9, 9]),
    (3, 0.2, [5, 5, 5, 5]),
]
KEPT = [
    (0, 1.0909, [10, 10, 50, 50]),
    (0, 0.6364, [200, 10, 40, 40]),
    (1, 1.1429, [100, 100, 30, 30]),
    (1, 0.7143, [150, 100, 30, 30]),
    (3, 2e7, [5, 5, 5, 5]),
]


def detections_of(*images) -> Detections:
    """Detections of each image, (class, score, box)."""
    rows = [(i, *one) for i, own in enumerate(images) for one in own]
    return Detections(
        np.array([r[0] for r in rows], np.int64),
        np.array([r[1] for r in rows], np.int64),
        np.array([r[3] for r in rows], np.float64).reshape(-1, 4),
        np.array([r[2] for r in rows], np.float64),
    )


def kept_rows(found):
    kept = found.detections
    return list(zip(kept.classes, found.normalized, kept.boxes.tolist(), strict=True))


@pytest.mark.parametrize("keep", [0.3, 0.5])
@pytest.mark.parametrize("tie", ["keep_larger", "reference"])
def test_adaptive_rule_gives_the_measured_boxes(keep, tie):
    rule = AdaptiveRule(keep=keep, tie=tie)
    found = select_boxes(detections_of(GIVEN), tags_of([0, 1, 3]), rule)
    for (index, score, box), (want_index, want_score, want_box) in zip(
        kept_rows(found), KEPT, strict=True
    ):
        assert (index, box) == (want_index, want_box)
        assert score == pytest.approx(want_score, rel=1e-4)
    assert found.dropped["untagged"] == 1


def test_a_box_inside_another_goes_by_the_share_of_its_own_area():
    inner, outer = [15, 15, 20, 20], [10, 10, 50, 50]  # SPEC_WEAKSAM A3: 1 and 0.16
    for first, second in ((inner, outer), (outer, inner)):
        own = [(0, 0.9, first), (0, 0.8, second)]
        for contain, want in ((1.0, 2), (0.99, 1)):  # the reference adds 1e-6 to the area
            found = select_boxes(detections_of(own), tags_of([0]), AdaptiveRule(contain=contain))
            assert len(found.detections) == want
        assert found.detections.boxes.tolist() == [outer]


def test_top_rules_keep_the_best_of_each_tag():
    for count, want in ((1, [0.60, 0.08, 0.2]), (2, [0.60, 0.35, 0.08, 0.05, 0.2])):
        found = select_boxes(detections_of(GIVEN), tags_of([0, 1, 3]), TopRule(count))
        assert found.detections.scores.tolist() == want
        assert found.normalized.tolist() == want


def test_two_equal_boxes_lose_the_class_as_in_the_reference_only():
    twice = detections_of([(0, 0.5, [10, 10, 20, 20]), (0, 0.4, [10, 10, 20, 20])])
    tags = tags_of([0])
    assert len(select_boxes(twice, tags, REFERENCE).detections) == 0
    found = select_boxes(twice, tags, AdaptiveRule())
    assert found.detections.scores.tolist() == [0.5]


@pytest.mark.parametrize("seed", range(4))
def test_batched_rule_equals_the_loops_of_the_reference(seed):
    detections, tags = random_detections(np.random.default_rng(seed), images=60, boxes=40)
    found = select_boxes(detections, tags, REFERENCE)
    kept = found.detections
    columns = (kept.images, kept.classes, kept.scores, found.normalized, kept.boxes)
    ours = list(zip(*(c.tolist() for c in columns), strict=True))
    assert ours == plain_selection(detections, tags, REFERENCE)
    assert found.dropped["contained"] > 0


sets = st.lists(
    st.tuples(
        st.integers(0, 1),
        st.integers(0, 20).map(lambda n: n / 20),
        st.lists(st.integers(1, 12), min_size=4, max_size=4),
    ),
    max_size=12,
)


@settings(deadline=None, max_examples=300)
@given(sets, st.sampled_from([0.3, 0.5, 1.0]), st.sampled_from([0.5, 0.85, 1.0]))
def test_keep_larger_keeps_a_box_of_each_class_and_is_else_the_reference(rows, keep, contain):
    rows = sorted(rows, key=lambda row: -row[1])  # the reference takes its input in this order
    detections, tags = detections_of(rows), tags_of([0, 1], classes=2)
    rule = AdaptiveRule(keep=keep, contain=contain)
    found = select_boxes(detections, tags, rule)
    assert set(found.detections.classes) == {index for index, _, _ in rows}
    loops = plain_adaptive(rows, {0, 1}, keep, contain)
    if not mutual(rows, contain):
        kept = zip(found.detections.classes, found.detections.boxes.tolist(), strict=True)
        assert sorted(kept) == sorted((index, box) for index, _, _, box in loops)
    reference = select_boxes(detections, tags, replace(rule, tie="reference")).detections
    got = zip(reference.classes, reference.boxes.tolist(), strict=True)
    assert sorted(got) == sorted((index, box) for index, _, _, box in loops)


def mutual(rows, contain):
    """Whether two boxes of one class contain each other."""

    def share(a, b):
        wide = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
        tall = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
        return max(wide, 0) * max(tall, 0) / (a[2] * a[3] + 1e-6)

    return any(
        c == d and min(share(a, b), share(b, a)) >= contain
        for i, (c, _, a) in enumerate(rows)
        for d, _, b in rows[:i]
    )


def test_order_of_the_file_does_not_matter():
    detections, tags = random_detections(np.random.default_rng(7), images=20, boxes=30)
    shuffled = detections.take(np.random.default_rng(8).permutation(len(detections)))
    one, other = (select_boxes(d, tags, AdaptiveRule()) for d in (detections, shuffled))
    np.testing.assert_array_equal(one.detections.boxes, other.detections.boxes)
    np.testing.assert_array_equal(one.normalized, other.normalized)


def test_many_pairs_are_compared_part_by_part(monkeypatch):
    detections, tags = random_detections(np.random.default_rng(3), images=10, boxes=40)
    whole = select_boxes(detections, tags, AdaptiveRule())
    monkeypatch.setattr("weaksam.pseudo_boxes.PAIRS_AT_ONCE", 7)
    parts = select_boxes(detections, tags, AdaptiveRule())
    np.testing.assert_array_equal(whole.detections.boxes, parts.detections.boxes)


@pytest.mark.parametrize(
    "normalize, want",
    [
        ("range", [0.8 / (0.6 + 1e-8), 0.5 / (0.6 + 1e-8)]),
        ("max", [1.0, 0.625]),
        ("minmax", [1.0, 0.5]),
        ("none", [0.8, 0.5]),
    ],
)
def test_scores_are_normalized_within_image_and_class(normalize, want):
    own = [(0, s, [60 * i, 0, 50, 50]) for i, s in enumerate((0.8, 0.5, 0.2))]
    other = [(0, 0.1, [0, 0, 9, 9])]
    rule = AdaptiveRule(keep=0.4, normalize=normalize)
    found = select_boxes(detections_of(own, other), tags_of([0], [0]), rule)
    assert found.normalized[:2] == pytest.approx(want)
    assert found.detections.images.tolist() == [0, 0, 1]  # the best stays at any score


@pytest.mark.parametrize("normalize", ["range", "max", "minmax", "none"])
def test_scores_of_zero_still_keep_one_box(normalize):
    own = [(0, 0.0, [0, 0, 9, 9]), (0, 0.0, [50, 50, 9, 9])]
    found = select_boxes(detections_of(own), tags_of([0]), AdaptiveRule(normalize=normalize))
    assert np.isfinite(found.normalized).all()
    assert found.detections.boxes.tolist()[0] == [0, 0, 9, 9]


def test_no_detection_of_a_tag_is_counted_and_all_images_are_listed(tmp_path):
    tags = tags_of([0, 1], [2], [])
    detections = detections_of([(0, 0.5, [1, 2, 3, 4]), (3, 0.9, [1, 1, 5, 5])])
    rule = AdaptiveRule()
    found = select_boxes(detections, tags, rule)
    counts = write_pseudo_boxes(tmp_path / "boxes.json", found, tags, {"rule": rule.as_info()})
    assert counts["tags_without_boxes_by_class"] == {"class 1": 1, "class 2": 1}
    assert (counts["tags_without_boxes"], counts["tags"]) == (2, 3)
    assert (counts["boxes"], counts["images_without_boxes"]) == (1, 2)
    content = json.loads((tmp_path / "boxes.json").read_text())
    assert [image["id"] for image in content["images"]] == [1, 2, 3]
    assert content["info"]["rule"] == {
        **{"name": "adaptive", "keep": 0.3, "contain": 0.85},
        **{"normalize": "range", "tie": "keep_larger"},
    }
    assert content["annotations"] == [
        {
            **{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "area": 12},
            **{"iscrowd": 0, "score": 0.5, "score_normalized": 0.5 / 1e-8},
        }
    ]


def test_wrong_settings_are_refused():
    for wrong in ({"keep": 0.0}, {"keep": 1.1}, {"contain": 0}, {"keep": float("nan")}):
        with pytest.raises(ValueError, match="above 0 and up to 1"):
            AdaptiveRule(**wrong)
    for wrong in ({"normalize": "mean"}, {"tie": "both"}):
        with pytest.raises(ValueError, match="expected one of"):
            AdaptiveRule(**wrong)
    with pytest.raises(ValueError, match="at least 1"):
        TopRule(0)


# Quality


def true_boxes(tmp_path, tags, annotations):
    path = tmp_path / "truth.json"
    content = {
        "images": [{"id": image.id} for image in tags.images],
        "categories": [{"id": 10 * number, "name": name} for number, name in tags.categories],
        "annotations": [{"id": n, **entry} for n, entry in enumerate(annotations)],
    }
    path.write_text(json.dumps(content))
    return path


def test_precision_and_recall_by_hand(tmp_path):
    tags = tags_of([0, 1], [0])
    box = [10, 10, 20, 20]
    truth = [
        {"image_id": 1, "category_id": 10, "bbox": box},
        {"image_id": 1, "category_id": 20, "bbox": [100, 100, 20, 20], "difficult": 1},
        {"image_id": 1, "category_id": 10, "bbox": [200, 200, 20, 10]},
        {"image_id": 2, "category_id": 10, "bbox": box},
    ]
    kept = detections_of(
        [
            (0, 0.9, [10, 10, 20, 20]),  # right
            (0, 0.8, [12, 10, 20, 20]),  # its object is taken
            (0, 0.1, [200, 200, 20, 20]),  # IoU 0.5 exactly: right
            (1, 0.9, [100, 100, 20, 20]),  # difficult: counts neither way
        ],
        [(1, 0.9, [10, 10, 20, 20])],  # another class
    )
    found = measure_boxes(kept, read_true_boxes(true_boxes(tmp_path, tags, truth), tags), 2)
    assert (found.right, found.boxes, found.ignored, found.objects) == (2, 5, 1, 3)
    assert (found.precision, found.recall) == (2 / 4, 2 / 3)
    assert found.f1 == pytest.approx(2 * (1 / 2) * (2 / 3) / (1 / 2 + 2 / 3))
    assert found.boxes_per_image == 2.5
    assert "IoU >= 0.5" in found.protocol


def test_without_boxes_or_objects_figures_are_none(tmp_path):
    tags = tags_of([0])
    truth = read_true_boxes(true_boxes(tmp_path, tags, []), tags)
    found = measure_boxes(detections_of(), truth, 1)
    assert (found.precision, found.recall, found.f1) == (None, None, None)


def test_the_truth_has_to_be_of_the_tagged_images_and_classes(tmp_path):
    path = true_boxes(tmp_path, tags_of([0]), [])
    with pytest.raises(ValueError, match="truth.json: lacks 1 of the 2 images .* image id 2"):
        read_true_boxes(path, tags_of([0], [0]))
    with pytest.raises(ValueError, match="truth.json: has no category named 'class 4'"):
        read_true_boxes(path, tags_of([0], classes=5))
    path = true_boxes(tmp_path, tags_of([0]), [{"image_id": 1, "category_id": 10}])
    with pytest.raises(ValueError, match="annotation id 0 lacks"):
        read_true_boxes(path, tags_of([0]))


# The command


@pytest.fixture
def files(tmp_path):
    """Words of a command over A4's detections, and its tags."""
    tags = tags_of([0, 1, 3])
    write_tags(tmp_path / "tags.json", tags)
    lines = [entry(1, index + 1, score, box) for index, score, box in GIVEN]
    (tmp_path / "d.json").write_text(json.dumps(lines))
    words = ["pseudo-boxes", "--detections", str(tmp_path / "d.json")]
    return [*words, "--tags", str(tmp_path / "tags.json"), "-o", str(tmp_path / "boxes.json")], tags


def test_the_command_writes_the_boxes_and_reports(files, tmp_path, capsys):
    words, tags = files
    truth = [{"image_id": 1, "category_id": 10, "bbox": [10, 10, 50, 50]}]
    path = true_boxes(tmp_path, tags, truth)
    assert main([*words, "--keep", "0.5", "--truth", str(path)]) == 0
    content = json.loads((tmp_path / "boxes.json").read_text())
    assert [a["bbox"] for a in content["annotations"]] == [box for _, _, box in KEPT]
    assert content["info"]["rule"]["keep"] == 0.5
    shown = capsys.readouterr().out
    assert "5 boxes on 1 images" in shown and "1 untagged" in shown
    assert "precision 0.200, recall 1.000" in shown and "protocol: greedy" in shown
    top = [*words, "--rule", "topk", "--count", "2"]
    assert main(top) == 2  # another rule made what is there
    assert "boxes.json was made with other rule; give another output" in capsys.readouterr().err
    assert json.loads((tmp_path / "boxes.json").read_text()) == content
    (tmp_path / "boxes.json").unlink()
    assert main(top) == 0
    assert json.loads((tmp_path / "boxes.json").read_text())["info"]["rule"] == {
        **{"name": "topk", "count": 2}
    }


@pytest.mark.parametrize(
    "more, message",
    [
        (["--rule", "top1", "--keep", "0.3"], "--keep does nothing with --rule top1"),
        (["--count", "2"], "--count does nothing with --rule adaptive"),
        (["--rule", "topk"], "--rule topk needs --count"),
        (["--keep", "1.5"], "keep=1.5; expected"),
    ],
)
def test_the_command_refuses_flags_that_would_do_nothing(files, more, message, tmp_path, capsys):
    assert main([*files[0], *more]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "boxes.json").exists()


def test_true_labels_reach_the_report_only(files, tmp_path):
    words, tags = files
    wrong = [{"image_id": 1, "category_id": 10, "bbox": [300, 300, 20, 20]}]
    assert main(words) == 0
    before = (tmp_path / "boxes.json").read_bytes()
    assert main([*words, "--truth", str(true_boxes(tmp_path, tags, wrong))]) == 0
    assert (tmp_path / "boxes.json").read_bytes() == before


def test_images_can_be_left_out(tmp_path, capsys):
    tags = tags_of([0], [0, 1], [1])
    write_tags(tmp_path / "tags.json", tags)
    lines = [entry(number, index + 1, 0.5, [5, 5, 9, 9]) for number, index in ((1, 0), (3, 1))]
    lines.append(entry(2, 1, 0.25, [1, 2, 3, 4]))
    (tmp_path / "d.json").write_text(json.dumps(lines))
    (tmp_path / "list.txt").write_text(f"{Path(tags.images[1].file_name).stem}\nunknown\n")
    words = ["pseudo-boxes", "--detections", str(tmp_path / "d.json")]
    words += ["--tags", str(tmp_path / "tags.json"), "-o", str(tmp_path / "boxes.json")]
    leave_out = ["--leave-out", str(tmp_path / "list.txt")]
    assert main([*words, *leave_out]) == 0
    content = json.loads((tmp_path / "boxes.json").read_text())
    assert [image["id"] for image in content["images"]] == [1, 3]
    assert [(a["image_id"], a["category_id"]) for a in content["annotations"]] == [(1, 1), (3, 2)]
    assert main(words) == 2  # all images: another file
    assert "other left_out_sha256" in capsys.readouterr().err
    assert main([*words, "--leave-out", str(tmp_path / "none.txt")]) == 2
    assert "none.txt" in capsys.readouterr().err


def test_chosen_boxes_are_measured_as_when_they_were_chosen(files, tmp_path, capsys):
    words, tags = files
    path = true_boxes(tmp_path, tags, [{"image_id": 1, "category_id": 10, "bbox": [9, 9, 50, 50]}])
    assert main([*words, "--truth", str(path)]) == 0
    told = capsys.readouterr().out.splitlines()[-2:]
    measured = ["evaluate-detections", "--boxes", str(tmp_path / "boxes.json")]
    measured += ["--tags", str(tmp_path / "tags.json"), "--output", str(tmp_path / "q.json")]
    assert main([*measured, "--annotations", str(path)]) == 0
    assert capsys.readouterr().out.splitlines() == told
    assert json.loads((tmp_path / "q.json").read_text())["right"] == 1


def test_the_benchmark_compares_the_same_boxes():
    (row,) = measure(images=20, boxes=30, repeats=1)
    assert "the same boxes" in row.what
