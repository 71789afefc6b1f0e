"""The pictures of figure/ from a run's files, and what is said when those are missing."""

import json
from functools import partial

import cv2
import pytest
import torch

from adet.config import get_cfg
from detectron2.modeling import build_model
from tests.programs import make_shapes, split_coco
from weaklabels.coco import CocoFile
from weaklabels.masks import segmentation_rle
from weaklabels.sheet import GAP, PANEL_WIDTH
from wsis.cli.main import program

main = partial(program, "figures")
STUDENT = "configs/Quickstart/shapes_student.yaml"


def mark(run, stage: str, **flags: object) -> None:
    folder = run / "stages"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{stage}.json").write_text(json.dumps({"inputs": {"flags": flags}}, default=str))


@pytest.fixture
def run(tmp_path):
    """What a quick start leaves that the pictures need: labels are the true masks."""
    data, run = tmp_path / "shapes", tmp_path / "seed_0"
    make_shapes([str(data), "--train", "8", "--val", "1", "--size", "64"])
    truth = data / "annotations" / "instances_train.json"
    split_coco([str(truth), "--percent", "20"])
    weak = truth.with_name("instances_train_20p_w.json")
    mark(run, "student", **{"config-file": STUDENT})
    flags = {"annotations": truth, "weak-annotations": weak, "image-root": data / "train"}
    mark(run, "quality_unrefined", **flags)
    masks = {a["id"]: a["segmentation"] for a in CocoFile(truth).annotations()}
    records = {
        i: {**image, "image_id": i, "instances": []} for i, image in CocoFile(weak).images.items()
    }
    for annotation in CocoFile(weak).annotations():
        record = records[annotation["image_id"]]
        rle = segmentation_rle(masks[annotation["id"]], record["height"], record["width"])
        label = {"category_id": annotation["category_id"], "score": 1.0}
        label |= {"point": annotation["point"]}
        label["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode()}
        record["instances"].append(label)
    lines = "".join(json.dumps(record) + "\n" for record in records.values())
    for name in ("weak.jsonl", "weak_refined.jsonl"):
        (run / name).write_text(lines)
    cfg = get_cfg()
    cfg.merge_from_file(STUDENT)
    (run / "student").mkdir()
    torch.save({"model": build_model(cfg).state_dict()}, run / "student" / "model_final.pth")
    return run


def test_pictures_show_every_step(run, tmp_path):
    output = tmp_path / "figure"
    assert main(["overview", "pseudo_labels", "--run", str(run), "--output", str(output)]) == 0
    overview = cv2.imread(str(output / "overview.png"))
    assert overview.shape[1] == 5 * PANEL_WIDTH + 4 * GAP
    teacher, refined = (overview[:, k * (PANEL_WIDTH + GAP) :][:, :PANEL_WIDTH] for k in (1, 2))
    assert (teacher[24:] == refined[24:]).all()  # the same labels here; titles differ
    assert (teacher[24:] != overview[24:, :PANEL_WIDTH]).any()
    sheet = cv2.imread(str(output / "pseudo_labels.png"))
    assert sheet.shape[1] == 4 * PANEL_WIDTH + 3 * GAP


def test_results_are_drawn_from_reports(tmp_path):
    folders = []
    for percent, ap in ((1, 2.0), (10, 8.0)):
        folders.append(tmp_path / f"{percent}p")
        folders[-1].mkdir()
        rows = {name: [[ap, 2 * ap]] for name in ("teacher", "student", "student without points")}
        if percent == 10:
            rows["student"].append([10.0, 20.0])
            rows["fully supervised"] = [[12.0, 24.0]]
        report = {"percent": percent, "training images": 600, "AP and AP50 by seed": rows}
        (folders[-1] / "report.json").write_text(json.dumps(report))
    words = ["results", "--output", str(tmp_path), "--budgets", *map(str, folders)]
    assert main(words) == 0
    picture = cv2.imread(str(tmp_path / "results.png"))
    assert picture.shape == (480, 720, 3)
    assert len({tuple(colour) for colour in picture.reshape(-1, 3).tolist()}) > 50


def test_what_is_missing_is_said(tmp_path, capsys):
    assert main(["overview", "--run", str(tmp_path)]) == 2
    assert "run `wsis quickstart` first" in capsys.readouterr().err
    assert main(["results"]) == 2
    assert "--budgets" in capsys.readouterr().err
