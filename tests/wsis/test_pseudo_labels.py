"""Pseudo-label generation: resuming to the same bytes, no leak of masks, unreadable images."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as mask_utils

from adet.config import get_cfg
from adet.modeling.solov2 import PROMPTS
from detectron2.modeling import build_model
from detectron2.structures import Instances
from tests.programs import make_shapes, split_coco
from weaklabels.shards import RecordShards
from wsis.cli.main import program
from wsis.pseudo_labels import make_record

main = partial(program, "generate")
ROOT = Path(__file__).resolve().parents[2]
CONFIG = """
MODEL:
  META_ARCHITECTURE: SOLOv2
  MASK_ON: true
  BACKBONE: {NAME: build_resnet_fpn_backbone, FREEZE_AT: 0}
  RESNETS:
    {DEPTH: 18, OUT_FEATURES: [res2, res3, res4, res5], NORM: BN, RES2_OUT_CHANNELS: 16}
  FPN: {IN_FEATURES: [res2, res3, res4, res5], OUT_CHANNELS: 32}
  SOLOV2:
    {INSTANCE_IN_CHANNELS: 32, INSTANCE_CHANNELS: 32, NUM_INSTANCE_CONVS: 1, MASK_IN_CHANNELS: 32,
     MASK_CHANNELS: 32, NUM_KERNELS: 32, NUM_MASKS: 32, NUM_GRIDS: [12, 10, 8, 6, 4],
     NUM_CLASSES: 7, NMS_TYPE: mask}
INPUT: {MASK_FORMAT: bitmask, MIN_SIZE_TEST: 96, MAX_SIZE_TEST: 128}
DATALOADER: {NUM_WORKERS: 0}
VERSION: 2
"""
NUM_IMAGES = 12


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """A folder with shapes, their split, a config and seeded weights."""
    folder = tmp_path_factory.mktemp("shapes")
    words = ["--train", str(NUM_IMAGES), "--val", "1", "--size", "96"]
    assert make_shapes([str(folder), *words]) == 0
    assert split_coco([str(folder / "annotations/instances_train.json"), "--images", "2"]) == 0
    (folder / "config.yaml").write_text(CONFIG)
    cfg = get_cfg()
    cfg.merge_from_file(str(folder / "config.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    torch.manual_seed(0)
    model = build_model(cfg)
    torch.nn.init.normal_(model.ins_head.kernel_pred.weight, std=0.3)
    torch.save({"model": model.state_dict()}, folder / "model.pth")
    return folder


@pytest.fixture
def command(shapes, tmp_path):
    """Words of the generator's command line for one annotation file, dataset name and output."""

    def words(annotations: Path, name: str, output: str = "weak.jsonl", *options: str) -> list:
        base = ["--config-file", str(shapes / "config.yaml"), "--num-gpus", "0"]
        base += ["--dataset", f"{name}={annotations}:{shapes / 'train'}"]
        base += ["--output", str(tmp_path / output), *options]
        return [*base, "MODEL.WEIGHTS", str(shapes / "model.pth")]

    return words


def weak_json(shapes: Path) -> Path:
    return shapes / "annotations" / "instances_train_2i_w.json"


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_records_hold_the_points_of_every_weak_image(shapes, command, tmp_path, capsys):
    assert main(command(weak_json(shapes), "generate_all")) == 0
    records = read(tmp_path / "weak.jsonl")
    weak = json.loads(weak_json(shapes).read_text())
    assert [r["image_id"] for r in records] == [image["id"] for image in weak["images"]]
    assert {r["file_name"] for r in records} == {i["file_name"] for i in weak["images"]}
    unmatched = json.loads((tmp_path / "weak.unmatched.json").read_text())
    points = {(a["image_id"], a["category_id"], *a["point"]) for a in weak["annotations"]}
    made = [(r["image_id"], i["category_id"], *i["point"]) for r in records for i in r["instances"]]
    lost = [(p["image_id"], p["category_id"], *p["point"]) for p in unmatched["points"]]
    assert made and sorted(made + lost) == sorted(points)
    assert sum(entry["count"] for entry in unmatched["counts"]) == len(lost)
    for record in records:
        for instance in record["instances"]:
            mask = mask_utils.decode(instance["segmentation"])
            assert mask.shape == (record["height"], record["width"])
            assert mask.sum() == instance["area"] > 0
            ys, xs = np.nonzero(mask)
            box = [xs.min(), ys.min(), xs.max() - xs.min() + 1, ys.max() - ys.min() + 1]
            assert instance["bbox"] == box
    assert not (tmp_path / "weak.jsonl.parts").exists()
    capsys.readouterr()
    assert main(command(weak_json(shapes), "generate_all")) == 0
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize("prompt", [name for name, p in PROMPTS.items() if p.points_only])
def test_no_mask_or_box_of_a_weak_image_is_used(shapes, command, tmp_path, prompt):
    """Garbage in place of every mask and box changes no byte."""
    content = json.loads(weak_json(shapes).read_text())
    for index, annotation in enumerate(content["annotations"]):
        garbage = ([[0, 0, 5, 0, 5, 5]], [[1, 2]], {"counts": "x", "size": [1, 1]}, "no mask", 7)
        annotation["segmentation"] = garbage[index % len(garbage)]
        annotation["bbox"] = ([], [1, 2, 3, 4], None, "box", [-9, 0, 0, 0])[index % 5]
        annotation["area"] = -1
    corrupted = tmp_path / "corrupted.json"
    corrupted.write_text(json.dumps(content))
    options = ("--prompt", prompt)
    assert main(command(weak_json(shapes), f"clean_{prompt}", "weak.jsonl", *options)) == 0
    assert main(command(corrupted, f"corrupted_{prompt}", "corrupted.jsonl", *options)) == 0
    names = [("weak.jsonl", "corrupted.jsonl"), ("weak.unmatched.json", "corrupted.unmatched.json")]
    for clean, dirty in names:
        assert (tmp_path / clean).read_bytes() == (tmp_path / dirty).read_bytes()


def test_a_killed_run_goes_on_to_the_same_bytes(shapes, command, tmp_path):
    """A pipe in place of the sixth image holds the run up until it is killed."""
    whole = command(weak_json(shapes), "killed_points", "whole.jsonl")
    assert main(whole) == 0
    images = tmp_path / "train"
    shutil.copytree(shapes / "train", images)
    words = command(weak_json(shapes), "killed_points", "killed.jsonl")
    place = words.index("--dataset") + 1
    words[place] = f"killed_points_copy={weak_json(shapes)}:{images}"
    pipe = images / json.loads(weak_json(shapes).read_text())["images"][5]["file_name"]
    content = pipe.read_bytes()
    pipe.unlink()
    os.mkfifo(pipe)
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "tools/generate_pseudo_labels.py"), *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    part = tmp_path / "killed.jsonl.parts" / "rank0of1.jsonl"
    deadline = time.monotonic() + 60
    try:
        while not (part.exists() and part.read_bytes().count(b"\n") == 5):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed.jsonl").exists()
    pipe.unlink()
    pipe.write_bytes(content)
    with open(part, "ab") as file:  # as if the kill had come in the middle of a line
        file.write(b'{"image_id": 3, "inst')
    assert main(words) == 0
    assert (tmp_path / "killed.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_several_processes_write_what_one_writes(shapes, command, tmp_path, processes):
    assert main(command(weak_json(shapes), "sharded_points", "one.jsonl")) == 0
    flags = ("--num-processes", str(processes))
    assert main(command(weak_json(shapes), "sharded_points", "more.jsonl", *flags)) == 0
    for one, more in (("one", "more"), ("one.unmatched", "more.unmatched")):
        suffix = ".json" if "." in one else ".jsonl"
        assert (tmp_path / (one + suffix)).read_bytes() == (tmp_path / (more + suffix)).read_bytes()


def test_unreadable_images_are_listed_and_tried_again(shapes, command, tmp_path, capsys):
    content = json.loads(weak_json(shapes).read_text())
    content["images"][1]["file_name"] = "gone.jpg"
    broken = tmp_path / "broken.json"
    broken.write_text(json.dumps(content))
    words = command(broken, "broken_points")
    assert main(words) == 1
    assert "gone.jpg" in capsys.readouterr().err
    assert len(read(tmp_path / "weak.jsonl")) == len(content["images"]) - 1
    assert main(words) == 1  # it is still missing


def test_parts_of_other_settings_are_not_continued(tmp_path):
    RecordShards(tmp_path / "a.jsonl", {"weights": "one.pth"}).open()
    with pytest.raises(ValueError, match="'one.pth' then, 'two.pth' now"):
        RecordShards(tmp_path / "a.jsonl", {"weights": "two.pth"}).open()


def empty_result(height: int, width: int) -> Instances:
    result = Instances((height, width))
    result.pred_masks = torch.zeros(0, height, width, dtype=torch.bool)
    result.pred_classes = torch.zeros(0, dtype=torch.int64)
    result.scores = torch.zeros(0)
    return result


def test_a_kept_unmatched_point_is_a_disc_around_it():
    image = {"image_id": 1, "record_file_name": "a.jpg", "height": 40, "width": 30}
    image["annotations"] = [{"category_id": 1, "point": [12.25, 30.0]}]
    lost = [{"instance": 0, "reason": "area"}]
    record = make_record(image, empty_result(40, 30), lost, [5, 9], "circle")
    (instance,) = record["instances"]
    assert instance["category_id"] == 9 and instance["score"] == 0
    mask = mask_utils.decode(instance["segmentation"]).astype(bool)
    ys, xs = np.nonzero(mask)
    assert ((xs - 12.25) ** 2 + (ys - 30) ** 2 <= 9).all() and mask[30, 12]
    assert record["unmatched"] == [{"category_id": 9, "point": [12.25, 30.0], "reason": "area"}]
    assert make_record(image, empty_result(40, 30), lost, [5, 9], "drop")["instances"] == []


def test_a_point_lost_to_another_names_it():
    image = {"image_id": 1, "record_file_name": "a.jpg", "height": 40, "width": 30}
    image["annotations"] = [{"category_id": 0, "point": [x, 9.5]} for x in (3.5, 4.5)]
    lost = [{"instance": 1, "reason": "nms", "other": 0}]
    (item,) = make_record(image, empty_result(40, 30), lost, [5], "drop")["unmatched"]
    want = {"category_id": 5, "point": [4.5, 9.5], "reason": "nms", "other_point": [3.5, 9.5]}
    assert item == want


def test_points_of_one_place_share_a_mask_or_get_one_each(shapes, command, tmp_path):
    """With PROMPT_NMS the second point is lost to the first; without it, none is lost so."""
    content = json.loads(weak_json(shapes).read_text())
    twins = [dict(a, id=10_000 + a["id"]) for a in content["annotations"]]
    content["annotations"] += twins
    (tmp_path / "twins.json").write_text(json.dumps(content))
    for name, value in (("on", "True"), ("off", "False")):
        words = command(tmp_path / "twins.json", f"twins_{name}", f"{name}.jsonl")
        assert main([*words, "MODEL.SOLOV2.PROMPT_NMS", value]) == 0
    lost = json.loads((tmp_path / "on.unmatched.json").read_text())["points"]
    suppressed = [p for p in lost if p["reason"] == "nms"]
    assert len(suppressed) >= len(read(tmp_path / "on.jsonl")) / 2
    points = {(a["image_id"], *a["point"]) for a in content["annotations"]}
    assert all((p["image_id"], *p["other_point"]) in points for p in suppressed)
    assert any(p["point"] == p["other_point"] for p in suppressed)
    lost = json.loads((tmp_path / "off.unmatched.json").read_text())["points"]
    assert not [p for p in lost if p["reason"] == "nms"]
    count = {
        n: sum(len(r["instances"]) for r in read(tmp_path / f"{n}.jsonl")) for n in ("on", "off")
    }
    assert count["off"] == len(content["annotations"]) - len(lost) > count["on"]


@pytest.mark.parametrize("prompt", ["point_with_size", "cls", "none"])
def test_other_prompts_run_on_the_strong_images(shapes, command, tmp_path, prompt):
    strong = shapes / "annotations" / "instances_train_2i_s.json"
    words = command(strong, f"strong_{prompt}", "strong.jsonl", "--prompt", prompt)
    assert main(words) == 0
    records = read(tmp_path / "strong.jsonl")
    assert len(records) == 2
    for record in records:
        assert all(("point" in entry) == (prompt != "none") for entry in record["instances"])


def save_weights(shapes: Path, path: Path, num_classes: int = 7, seed: int = 1) -> Path:
    cfg = get_cfg()
    cfg.merge_from_file(str(shapes / "config.yaml"))
    cfg.MODEL.DEVICE, cfg.MODEL.SOLOV2.NUM_CLASSES = "cpu", num_classes
    torch.manual_seed(seed)
    torch.save({"model": build_model(cfg).state_dict()}, path)
    return path


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("", "no trained network"),
        ("ImageNetPretrained/R-18.pth", "no trained network"),
        ("three_classes.pth", "does not fit the network of the config, which has 7 classes"),
        ("gone.pth", "gone.pth is not there"),
    ],
)
def test_weights_of_no_trained_network_are_refused(
    shapes, command, tmp_path, capsys, weights, message
):
    save_weights(shapes, tmp_path / "three_classes.pth", num_classes=3)
    path = str(tmp_path / weights) if weights else ""
    words = command(weak_json(shapes), "untrained", "weak.jsonl")
    assert main([*words, "MODEL.WEIGHTS", path]) == 2
    assert message in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["three_classes.pth"]


def unfinished(shapes: Path, folder: Path) -> Path:
    """An annotation file with an image that is not there, so that the parts stay."""
    content = json.loads(weak_json(shapes).read_text())
    content["images"][1]["file_name"] = "gone.jpg"
    (folder / "unfinished.json").write_text(json.dumps(content))
    return folder / "unfinished.json"


def test_parts_of_another_teacher_of_the_same_name_are_not_continued(
    shapes, command, tmp_path, capsys
):
    weights = save_weights(shapes, tmp_path / "teacher.pth")
    words = command(unfinished(shapes, tmp_path), "retrained")
    words += ["MODEL.WEIGHTS", str(weights)]
    assert main(words) == 1
    records = (tmp_path / "weak.jsonl").read_bytes()
    capsys.readouterr()
    save_weights(shapes, weights, seed=2)
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "weights_sha256" in error and "remove the folder" in error
    assert main([*words[:2], "--num-processes", "2", *words[2:]]) == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("wsis generate: ") and "Traceback" not in error
    assert "weights_sha256" in error and "remove the folder" in error
    assert (tmp_path / "weak.jsonl").read_bytes() == records


def test_parts_of_another_annotation_file_of_the_same_name_are_not_continued(
    shapes, command, tmp_path, capsys
):
    annotations = unfinished(shapes, tmp_path)
    words = command(annotations, "relabeled")
    assert main(words) == 1
    content = json.loads(annotations.read_text())
    content["annotations"][0]["point"] = [1, 1]
    annotations.write_text(json.dumps(content))
    capsys.readouterr()
    assert main(words) == 2
    assert "json_sha256" in capsys.readouterr().err


def test_an_absolute_file_name_outside_the_image_root_is_kept(shapes, command, tmp_path):
    content = json.loads(weak_json(shapes).read_text())
    image = content["images"][0]
    elsewhere = tmp_path / "elsewhere.png"
    elsewhere.write_bytes((shapes / "train" / image["file_name"]).read_bytes())
    within = shapes / "train" / content["images"][1]["file_name"]
    image["file_name"] = str(elsewhere)
    content["images"][1]["file_name"] = str(within)
    (tmp_path / "absolute.json").write_text(json.dumps(content))
    words = command(tmp_path / "absolute.json", "absolute")
    assert main(words) == 2 and not (tmp_path / "weak.jsonl").exists()
    assert main(["--allow-outside-root", *words]) == 0
    names = [record["file_name"] for record in read(tmp_path / "weak.jsonl")]
    assert names[:2] == [str(elsewhere), within.name]
