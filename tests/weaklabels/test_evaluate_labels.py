"""Reports on pseudo labels: perfect ones, damaged ones, AP by pycocotools, and errors."""

import contextlib
import io
import json
import re

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tests.programs import evaluate_labels as main
from tests.programs import split_coco as split_main
from tests.weaklabels.coco_samples import HEIGHT, WIDTH, compressed, decoded, make_coco


class Case:
    """A data set of 24 images, 6 of them strong; pseudo labels start as the true masks."""

    def __init__(self, folder, points="centroid"):
        self.folder = folder
        self.truth = make_coco(num_images=24, seed=5)
        truth_json = folder / "all.json"
        truth_json.write_text(json.dumps(self.truth))
        assert split_main([str(truth_json), "--images", "6", "--points", points]) == 0
        self.weak = json.loads((folder / "all_6i_w.json").read_text())
        rng = np.random.default_rng(1)
        masks = {a["id"]: compressed(decoded(a)) for a in self.truth["annotations"]}
        self.records = []
        for image in self.weak["images"]:
            own = [a for a in self.weak["annotations"] if a["image_id"] == image["id"]]
            fields = {k: image[k] for k in ("file_name", "height", "width")}
            instances = [
                {
                    "category_id": a["category_id"],
                    "score": round(float(rng.random()), 4),
                    "point": a["point"],
                    "segmentation": masks[a["id"]],
                }
                for a in own
            ]
            rng.shuffle(instances)
            self.records.append({"image_id": image["id"], **fields, "instances": instances})

    def damage(self, seed=0):
        """Shift every mask by up to 1 pixel and drop every fifth label."""
        rng, number = np.random.default_rng(seed), 0
        for record in self.records:
            kept = []
            for instance in record["instances"]:
                number += 1
                if number % 5:
                    mask = np.roll(decoded(instance), rng.integers(-1, 2, 2), axis=(0, 1))
                    kept.append(instance | {"segmentation": compressed(mask)})
            record["instances"] = kept

    def run(self, *args, labels=None, weak=True):
        if labels is None:
            labels = self.folder / "weak.jsonl"
            labels.write_text("".join(json.dumps(r) + "\n" for r in self.records))
        output = self.folder / "quality.json"
        flags = ["--truth-json", self.folder / "all.json", "--labels", labels, "--output", output]
        if weak:
            flags += ["--weak-json", self.folder / "all_6i_w.json"]
        code = main([str(flag) for flag in [*flags, *args]])
        return json.loads(output.read_text()) if code == 0 else code


@pytest.fixture
def case(tmp_path):
    return Case(tmp_path)


@pytest.mark.parametrize("points", ["centroid", "random", "inside", "jitter:2"])
def test_perfect_labels_get_full_marks(tmp_path, points, capsys):
    case = Case(tmp_path, points)
    report = case.run()
    number = len(case.weak["annotations"])
    assert report["images"] == 18
    assert report["pseudo_labels"] == report["points"]["points"] == number
    assert report["pseudo_labels_without_instance"] == 0
    for key in ("recall", "recall_iou50", "miou", "miou_labelled", "boundary_iou"):
        assert report["points"][key] == 100.0
    assert all(values["AP"] == 100.0 for values in report["mask_ap"].values())
    assert sum(g["points"] for g in report["points_by_class"].values()) == number
    assert sum(g["points"] for g in report["points_by_size"].values()) == number
    output = capsys.readouterr().out
    assert "scores forced to 1" in output
    assert "not detector AP" in output


def test_iou_of_damaged_labels_by_a_slow_loop(case):
    case.damage()
    report = case.run()
    truth = {a["id"]: decoded(a) > 0 for a in case.truth["annotations"]}
    ious = []
    for point in case.weak["annotations"]:
        (record,) = (r for r in case.records if r["image_id"] == point["image_id"])
        same = ("category_id", "point")
        found = [i for i in record["instances"] if all(i[k] == point[k] for k in same)]
        masks = [decoded(i) > 0 for i in found]
        own = truth[point["id"]]
        ious.append((own & masks[0]).sum() / (own | masks[0]).sum() if masks else None)
    labelled = [iou for iou in ious if iou is not None]
    assert 0 < len(labelled) < len(ious)
    points = report["points"]
    assert points["recall"] == pytest.approx(100 * len(labelled) / len(ious), abs=1e-3)
    assert points["miou_labelled"] == pytest.approx(100 * np.mean(labelled), abs=1e-3)
    assert points["miou"] == pytest.approx(100 * np.sum(labelled) / len(ious), abs=1e-3)


@pytest.mark.parametrize("mode", ["scores as given", "scores forced to 1"])
def test_ap_is_that_of_pycocotools(case, mode):
    case.damage()
    report = case.run()
    weak = {i["id"] for i in case.weak["images"]}
    results = [
        {k: instance[k] for k in ("category_id", "segmentation")}
        | {"image_id": r["image_id"], "score": instance["score"] if "given" in mode else 1.0}
        for r in case.records
        for instance in r["instances"]
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(case.folder / "all.json")
        evaluation = COCOeval(truth, truth.loadRes(results), "segm")
        evaluation.params.imgIds = sorted(weak)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    want = dict(zip(("AP", "AP50", "AP75", "APs", "APm", "APl"), evaluation.stats, strict=False))
    assert 5 < 100 * want["AP"] < 95
    got = report["mask_ap"][mode]
    for name, value in want.items():
        assert got[name] == (None if value == -1 else pytest.approx(100 * value, abs=1e-3))


def test_merged_file_and_records_give_the_same_report(case):
    case.damage()
    records = case.run()
    strong = json.loads((case.folder / "all_6i_s.json").read_text())
    pseudo = [
        instance | {"image_id": r["image_id"], "iscrowd": 0}
        for r in case.records
        for instance in r["instances"]
    ]
    labels = [a | {"id": n} for n, a in enumerate([*strong["annotations"], *pseudo], 1)]
    images = strong["images"] + case.weak["images"]
    merged = case.folder / "sw.json"
    merged.write_text(json.dumps(strong | {"images": images, "annotations": labels}))
    report = case.run(labels=merged)
    assert report.pop("labels") != records.pop("labels")
    assert report == records


def test_without_a_weak_file_the_records_choose_the_images(case):
    case.records = case.records[:4]
    report = case.run(weak=False)
    assert report["images"] == 4
    assert report["points"]["recall"] == 100.0


def test_images_without_a_record_count_as_unlabelled(case):
    case.records = case.records[:9]
    report = case.run()
    assert report["images"] == 18
    assert 0 < report["points"]["recall"] < 100


def test_no_label_at_all(case):
    for record in case.records:
        record["instances"] = []
    report = case.run()
    assert report["points"]["recall"] == report["points"]["miou"] == 0.0
    assert report["points"]["miou_labelled"] is None
    assert report["mask_ap"]["scores as given"]["AP"] == 0.0


def test_no_instance_at_all(case):
    case.truth["annotations"] = []
    (case.folder / "all.json").write_text(json.dumps(case.truth))
    report = case.run()
    assert report["points"]["points"] == 0
    assert report["mask_ap"]["scores as given"]["AP"] is None
    assert report["pseudo_labels_without_instance"] == report["pseudo_labels"] > 0


def test_labels_beside_every_instance_are_counted(case):
    full = np.ones((HEIGHT, WIDTH), np.uint8)
    extra = {"category_id": 20, "score": 1, "segmentation": compressed(full), "point": [0, 0]}
    empty = extra | {"segmentation": compressed(0 * full)}
    case.records[0]["instances"] += [extra, empty]
    report = case.run()
    assert report["pseudo_labels_without_instance"] == 1
    assert report["points"]["miou"] == 100.0


def test_sheet_shows_images_and_the_same_bytes_come_again(case):
    rng = np.random.default_rng(0)
    for image in case.truth["images"]:
        picture = rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        cv2.imwrite(str(case.folder / image["file_name"]), picture)
    contents = []
    for name in ("a.png", "b.png"):
        sheet = case.folder / "sheets" / name
        case.run("--sheet", sheet, "--image-root", case.folder, "--sheet-images", 3)
        contents.append((sheet.read_bytes(), (case.folder / "quality.json").read_bytes()))
    assert contents[0] == contents[1]
    height, width, _ = cv2.imread(str(sheet)).shape
    assert width == 3 * 320 + 2 * 4
    assert height == 24 + 3 * (240 + 4)
    assert len(list(sheet.parent.iterdir())) == 2


def test_sheet_needs_the_images(case, capsys):
    case.run()
    (case.folder / "quality.json").unlink()
    assert case.run("--sheet", case.folder / "a.png", "--image-root", case.folder) == 2
    assert ".jpg: no readable image" in capsys.readouterr().err
    for image in case.truth["images"]:
        cv2.imwrite(str(case.folder / image["file_name"]), np.zeros((5, 6, 3), np.uint8))
    assert case.run("--sheet", case.folder / "a.png", "--image-root", case.folder) == 2
    assert "5 x 6 pixels, but its labels are for 30 x 40" in capsys.readouterr().err
    assert case.run("--sheet", case.folder / "a.png") == 2


BAD = [
    (lambda c: c.records.append(c.records[0]), r"weak.jsonl:19: image \d+ has a record already"),
    (lambda c: c.records[1].update(image_id=5), "weak.jsonl:2: image 5 is not among"),
    (
        lambda c: c.records[0]["instances"][0].update(category_id=99),
        "weak.jsonl:1: instance 0: category_id 99",
    ),
    (
        lambda c: c.records[0]["instances"][0].update(segmentation={"size": [1, 1], "counts": [1]}),
        "weak.jsonl:1: instance 0: RLE of size",
    ),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_records_are_refused_by_line(case, capsys, change, message):
    change(case)
    assert case.run() == 2
    assert re.search(message, capsys.readouterr().err)


def test_truth_without_masks_is_refused(case, capsys):
    (case.folder / "all.json").write_text(json.dumps(case.weak))
    assert case.run() == 2
    assert "all.json: annotation id" in capsys.readouterr().err


def test_truth_that_lacks_images_is_refused(case, capsys):
    (case.folder / "all.json").write_text(
        json.dumps(case.truth | {"images": case.truth["images"][:3], "annotations": []})
    )
    assert case.run() == 2
    assert "all.json lacks" in capsys.readouterr().err


def test_a_merged_file_needs_to_know_the_weak_images(case, capsys):
    assert case.run(labels=case.folder / "all.json", weak=False) == 2
    assert "--weak-annotations must say" in capsys.readouterr().err
