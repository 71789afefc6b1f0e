"""wsis tags, clues and proposals: the way from tags to proposals, leaks, resume, its files."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from tests.wsis.weak_data import COLORS, CPU, make_tags, run_stages, wsis
from weaksam.clues.checkpoint import load_classifier
from weaksam.clues.points import read_points
from weaksam.clues.weaktr import WeakTrConfig
from weaksam.proposals.files import read_proposal_file
from wsis.cli.clues import layers
from wsis.runner.commands import python_path


def test_each_stage_reads_what_the_one_before_wrote(voc, done):
    both = read_proposal_file(done / "both.npz")
    assert both.ids.tolist() == ["1", "2", "3", "4", "5", "6"] and (np.diff(both.offsets) > 0).all()
    points = read_points(done / "points/points_coarse.npz")
    assert points.meta["labels"] == "given" and points.meta["allow_gt_labels"] is False
    assert [set(p.cls.tolist()) for p in points.points] == [{n % 3} for n in range(6)]
    assert load_classifier(done / "classifier/classifier.pth").classes == tuple(COLORS)


def test_the_same_commands_again_change_nothing(voc, done):
    files = {path: path.stat().st_mtime_ns for path in done.rglob("*.[np][pt][zh]")}
    assert len(files) >= 6
    run_stages(done / "tags.json", voc / "JPEGImages", done)
    assert {path: path.stat().st_mtime_ns for path in files} == files


def test_no_box_and_no_mask_reaches_a_stage_after_tags(voc, done, tmp_path):
    """All boxes and masks of VOC are spoiled once its tags are made."""
    spoiled = tmp_path / "VOC2007"
    shutil.copytree(voc, spoiled)
    for path in [*spoiled.glob("Annotations/*"), *spoiled.glob("SegmentationObject/*")]:
        path.write_bytes(b"spoiled")
    shutil.copy(done / "tags.json", tmp_path)
    made = run_stages(tmp_path / "tags.json", spoiled / "JPEGImages", tmp_path)
    want = {name: path.read_bytes() for name in made for path in done.rglob(name)}
    assert made == want
    states = [load_classifier(f / "classifier/classifier.pth").model for f in (done, tmp_path)]
    for a, b in zip(*(model.state_dict().values() for model in states), strict=True):
        assert torch.equal(a, b)


def test_no_box_of_a_coco_file_reaches_a_stage(voc, done, tmp_path):
    """The classes of a COCO file give the stages' bytes, whatever its boxes and masks are."""
    tags = json.loads((done / "tags.json").read_text())
    images = [{k: v for k, v in i.items() if k != "category_ids"} for i in tags["images"]]
    rng = np.random.default_rng(1)
    made = []
    for name in ("a", "b"):
        annotations = [
            {
                "id": image["id"],
                "image_id": image["id"],
                "category_id": image["category_ids"][0],
                "bbox": (box := rng.integers(1, 20, 4).tolist()),
                "area": box[2] * box[3],
                "segmentation": [rng.integers(1, 30, 6).tolist()],
                "iscrowd": 0,
            }
            for image in tags["images"]
        ]
        content = {"images": images, "categories": tags["categories"], "annotations": annotations}
        folder = tmp_path / name
        folder.mkdir()
        (folder / "instances_trainval.json").write_text(json.dumps(content))
        coco = ("--coco", folder / "instances_trainval.json", "-o", folder / "tags.json")
        assert wsis("tags", *coco) == 0
        made.append((folder / "tags.json").read_bytes())
    assert made[0] == made[1]
    assert [i["category_ids"] for i in json.loads(made[0])["images"]] == [
        i["category_ids"] for i in tags["images"]
    ]


@pytest.mark.slow
def test_processes_do_not_change_the_bytes(voc, done, tmp_path):
    data = ("--tags", done / "tags.json", "--image-root", voc / "JPEGImages", *CPU)
    weights = ("--weights", done / "classifier/classifier.pth", "--kernel", "7")
    two = ("--num-processes", "2")
    assert wsis("clues", "points", *data, *weights, *two, "--output", tmp_path / "points") == 0
    points = tmp_path / "points/points_coarse.npz"
    assert points.read_bytes() == (done / "points/points_coarse.npz").read_bytes()
    clicks = ("--coarse", points, "--cross", done / "clusters.npz", "--grid", "3")
    assert wsis("proposals", "points", *data, *clicks, *two, "--output", tmp_path / "sam.npz") == 0
    assert (tmp_path / "sam.npz").read_bytes() == (done / "sam.npz").read_bytes()


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on(voc, done, tmp_path):
    output = tmp_path / "sam.npz"
    words = ("--tags", done / "tags.json", "--image-root", voc / "JPEGImages", *CPU)
    words += ("--coarse", done / "points/points_coarse.npz", "--cross", done / "clusters.npz")
    words += ("--grid", "3", "--output", output)
    command = [sys.executable, "-m", "wsis", "proposals", "points", *map(str, words)]
    environment = os.environ | {"PYTHONPATH": python_path(), "OMP_NUM_THREADS": "1"}
    run = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    while not list(tmp_path.glob("sam.npz.shards/*.npz")) and run.poll() is None:
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert wsis("proposals", "points", *words) == 0
    assert output.read_bytes() == (done / "sam.npz").read_bytes()
    assert not list(tmp_path.glob("*.shards"))


def test_a_test_split_takes_predicted_labels_or_says_otherwise(voc, done, tmp_path, capsys):
    tags = make_tags(voc, tmp_path / "test.json", "test")
    words = ("--tags", tags, "--image-root", voc / "JPEGImages", *CPU, "--kernel", "7")
    words += ("--weights", done / "classifier/classifier.pth")
    assert wsis("clues", "points", *words, "--output", tmp_path / "given") == 2
    error = capsys.readouterr().err
    assert f"{tags}: its split 'test' is for evaluation" in error and "--allow-gt-labels" in error
    assert not (tmp_path / "given").exists()
    predicted = ("--labels", "predicted", "--output", tmp_path / "predicted")
    assert wsis("clues", "points", *words, *predicted) == 0
    allowed = ("--allow-gt-labels", "--output", tmp_path / "allowed")
    assert wsis("clues", "points", *words, *allowed) == 0
    for folder, labels, allow in (("predicted", "predicted", False), ("allowed", "given", True)):
        meta = read_points(tmp_path / folder / "points_coarse.npz").meta
        assert (meta["labels"], meta["allow_gt_labels"]) == (labels, allow)


def test_images_without_tag_point_or_box_are_counted_and_listed(voc, done, tmp_path, capsys):
    rows = "".join(f"{number + 1:06d}.jpg,{list(COLORS)[number % 3]}\n" for number in range(5))
    (tmp_path / "labels.csv").write_text(f"image,label\n{rows}000006.jpg,\n")
    images = voc / "JPEGImages"
    csv = ("--csv", tmp_path / "labels.csv", "--image-root", images)
    assert wsis("tags", *csv, "-o", tmp_path / "tags.json") == 0
    data = ("--tags", tmp_path / "tags.json", "--image-root", images, *CPU)
    weights = ("--weights", done / "classifier/classifier.pth", "--output", tmp_path / "points")
    assert wsis("clues", "points", *data, *weights) == 0
    points = tmp_path / "points/points_coarse.npz"
    assert wsis("clues", "cluster", "--points", points, "--output", tmp_path / "c.npz") == 0
    clicks = ("--coarse", points, "--no-grid", "--output", tmp_path / "p.npz")
    assert wsis("proposals", "points", *data, *clicks) == 0
    for name, reason in (
        ("tags", "no tag"),
        ("points/points_coarse", "no tag"),
        ("c", "no point"),
        ("p", "no proposal"),
    ):
        skipped = json.loads((tmp_path / f"{name}.skipped.json").read_text())
        assert (str(skipped[-1]["image_id"]), skipped[-1]["reason"]) == ("6", reason)
    said = capsys.readouterr().out
    assert "1 images without a tag are listed in" in said and "images have no box" in said


def test_recall_tells_the_boxes_and_the_yardstick(voc, done, tmp_path, capsys):
    truth = [
        {"id": n, "image_id": n, "bbox": [0, 0, 10, 10], "category_id": 1} for n in range(1, 7)
    ]
    content = json.loads((done / "tags.json").read_text()) | {"annotations": truth}
    (tmp_path / "truth.json").write_text(json.dumps(content))
    words = ("--proposals", f"both={done / 'both.npz'}", done / "search.npz")
    words += ("--annotations", tmp_path / "truth.json", "--output", tmp_path / "recall.json")
    assert wsis("proposals", "recall", "--tags", done / "tags.json", *words) == 0
    report = json.loads((tmp_path / "recall.json").read_text())
    rows = {(row["proposals"], row["source"]) for row in report["rows"]}
    assert {("both", "all"), ("both", "grid"), ("search", "all"), ("random boxes", "all")} <= rows
    assert report["objects"] == 6
    said = capsys.readouterr().out
    assert "6 images, 6 objects and 0 difficult ones" in said and "random boxes all" in said
    assert wsis("proposals", "recall", "--tags", done / "tags.json", *words[:2]) == 2


@pytest.mark.parametrize(
    "text,want", [("5-12", tuple(range(5, 13))), ("released", (9, 10)), ("3,1", (3, 1))]
)
def test_layers_are_read(text, want):
    assert layers(text) == want


def test_a_published_weaktr_file_finds_points(voc, done, tmp_path):
    torch.manual_seed(0)
    model = WeakTrConfig(3, None, 16, 2, 2, 8, 32, mlp_ratio=2, reduction=2).build()
    torch.save({"model": model.state_dict()}, tmp_path / "weaktr.pth")
    words = ("--tags", done / "tags.json", "--image-root", voc / "JPEGImages", *CPU)
    words += ("--layers", "1,2", "--kernel", "7", "--cross-kernel", "9", "--no-flip")
    words += ("--scales", "1.0", "--weights", tmp_path / "weaktr.pth", "--output", tmp_path)
    assert wsis("clues", "points", *words) == 0
    cross = read_points(tmp_path / "points_cross.npz").points
    assert set(np.concatenate([p.layer for p in cross]).tolist()) == {1, 2}
    assert (tmp_path / "points_fine.npz").is_file() and (tmp_path / "points_coarse.npz").is_file()
