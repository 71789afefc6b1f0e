"""Recall of proposals."""

import json
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from tests.weaksam.samples import make_dataset
from weaksam.proposals.files import ImageProposals, collect, write_proposals
from weaksam.proposals.images import read_images
from weaksam.proposals.recall import (
    Truth,
    matched_ious,
    measure_recall,
    truth_of_coco,
    truth_of_voc,
)

ROOT = Path(__file__).resolve().parents[2]
VOC = ROOT.parent / "shared" / "data" / "voc_mini" / "VOCdevkit" / "VOC2007"


@pytest.fixture
def dataset(tmp_path: Path):
    """Two images; grid finds the first object well, coarse the second one at IoU 0.5 exactly."""
    images, _ = make_dataset(tmp_path, 2)
    records = read_images(images)
    parts = [
        ImageProposals.join(
            [
                ImageProposals.of("grid", [[0, 0, 10, 10]]),
                ImageProposals.of("coarse", [[20, 0, 30, 10], [0, 0, 10, 10]]),
            ]
        ),
        ImageProposals.of("grid", np.zeros((0, 4))),
    ]
    write_proposals(tmp_path / "p.npz", collect(records, parts, {}))
    truth = {
        "1": Truth(np.array([[0.0, 0, 10, 10], [20, 0, 40, 10]]), np.array([False, True])),
        "2": Truth(np.array([[0.0, 0, 10, 10]]), np.array([False])),
    }
    return images, tmp_path / "p.npz", truth


def test_rows_by_source_with_and_without_difficult(dataset):
    images, path, truth = dataset
    report = measure_recall({"ours": path}, images, truth)
    rows = {(row["proposals"], row["source"]): row for row in report["rows"]}
    assert list(rows) == [
        ("ours", "all"),
        ("ours", "grid"),
        ("ours", "coarse"),
        ("random boxes", "all"),
    ]
    third = pytest.approx(1 / 3)
    assert rows["ours", "all"]["recall"] == [0.5, 0.5, 0.5]
    assert rows["ours", "all"]["recall_with_difficult"] == [pytest.approx(2 / 3), third, third]
    assert rows["ours", "grid"]["recall_with_difficult"] == [third] * 3
    assert rows["ours", "all"]["boxes_per_image"] == 1.5
    assert rows["random boxes", "all"]["boxes_per_image"] == 1.5
    assert (report["objects"], report["difficult_objects"]) == (2, 1)
    json.dumps(report, allow_nan=False)


def test_no_object_has_no_recall(dataset):
    images, path, _ = dataset
    none = Truth(np.zeros((0, 4)), np.zeros(0, bool))
    report = measure_recall({"ours": path}, images, {"1": none, "2": none})
    assert report["rows"][0]["recall"] == [None, None, None]


def test_a_proposal_serves_one_object():
    truth = np.array([[0.0, 0, 10, 10], [1, 0, 11, 10]])
    assert matched_ious(truth, truth[:1]).tolist() == [1.0, 0.0]


def test_matching_against_every_order():
    """The greedy matching is the assignment whose sorted IoUs are largest, where none are equal."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        low = rng.uniform(0, 6, (7, 2))
        boxes = np.concatenate([low, low + rng.uniform(2, 8, (7, 2))], axis=1)
        truth, found = boxes[:3], boxes[3:]
        overlaps = box_iou(torch.from_numpy(truth), torch.from_numpy(found)).numpy()
        best = max(
            sorted((overlaps[i, j] for i, j in enumerate(order)), reverse=True)
            for order in permutations(range(4), 3)
        )
        np.testing.assert_allclose(sorted(matched_ious(truth, found), reverse=True), best)


def test_truth_of_coco_leaves_crowds_out_and_keeps_difficult(tmp_path):
    images, _ = make_dataset(tmp_path, 2)
    content = json.loads(images.read_text())
    content["annotations"] = [
        {"id": 1, "image_id": 1, "bbox": [1, 2, 3, 4], "iscrowd": 0},
        {"id": 2, "image_id": 1, "bbox": [0, 0, 9, 9], "iscrowd": 1},
        {"id": 3, "image_id": 1, "bbox": [5, 5, 2, 2], "difficult": 1},
    ]
    images.write_text(json.dumps(content))
    truth = truth_of_coco(images)
    assert truth["1"].boxes.tolist() == [[1, 2, 4, 6], [5, 5, 7, 7]]
    assert truth["1"].difficult.tolist() == [False, True]
    assert truth["2"].boxes.shape == (0, 4)
    content["annotations"].append({"id": 4, "image_id": 9, "bbox": [1, 2, 3, 4]})
    images.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"tags\.json: annotation id 4"):
        truth_of_coco(images)


def test_images_without_truth_are_named(dataset):
    images, path, truth = dataset
    with pytest.raises(ValueError, match="no true boxes for 1 of 2 images.*such as 2"):
        measure_recall({"ours": path}, images, {"1": truth["1"]})


@pytest.mark.skipif(not VOC.is_dir(), reason=f"{VOC} is not there")
def test_truth_of_voc_counts_as_its_readme():
    truth = truth_of_voc(VOC, "test")
    assert len(truth) == 200
    assert sum((~t.difficult).sum() for t in truth.values()) == 519
    assert sum(t.difficult.sum() for t in truth.values()) == 108
