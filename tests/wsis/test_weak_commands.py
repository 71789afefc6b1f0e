"""wsis tags, clues and proposals: the way from tags to proposals, its files, and bad input."""

import json
import os
import pickle
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
from PIL import Image

from weaksam.clues.checkpoint import load_classifier, save_classifier
from weaksam.clues.points import PointFile, Points, read_points, write_points
from weaksam.clues.weaktr import WeakTrConfig
from weaksam.proposals.files import Proposals, read_proposal_file, write_proposals
from wsis.cli.clues import layers
from wsis.cli.main import program
from wsis.runner.commands import python_path

COLORS = {"blue": (40, 60, 220), "green": (40, 200, 60), "red": (230, 40, 40)}
SIZE_HW = (40, 56)
SMALL_NETWORK = (
    *("--network", "cam", "--feature", "res2", "--size", "32", "--epochs", "2"),
    *("--batch-size", "3", "--workers", "0", "--num-gpus", "0"),
    *("MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.BACKBONE.FREEZE_AT", "0"),
    *("MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.NORM", "BN"),
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "MODEL.RESNETS.RES2_OUT_CHANNELS", "8"),
    *("MODEL.RESNETS.OUT_FEATURES", "['res2']", "MODEL.PIXEL_STD", "[57.0, 57.0, 57.0]"),
)
CPU = ("--num-gpus", "0")


def wsis(command: str, *words: object) -> int:
    return program(command, [str(word) for word in words])


@pytest.fixture(scope="module")
def voc(tmp_path_factory) -> Path:
    """Six images as VOC has them, each with a square of one color, its box and its mask."""
    root = tmp_path_factory.mktemp("voc") / "VOC2007"
    for name in ("Annotations", "JPEGImages", "SegmentationObject", "ImageSets/Main"):
        (root / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(6):
        image = rng.integers(90, 150, (*SIZE_HW, 3)).astype(np.uint8)
        x, y, side = int(rng.integers(0, 38)), int(rng.integers(0, 22)), 18
        image[y : y + side, x : x + side] = list(COLORS.values())[number % 3]
        mask = np.zeros(SIZE_HW, np.uint8)
        mask[y : y + side, x : x + side] = 1
        name = f"{number + 1:06d}"
        Image.fromarray(image).save(root / "JPEGImages" / f"{name}.jpg", quality=95)
        Image.fromarray(mask).save(root / "SegmentationObject" / f"{name}.png")
        corners = {"xmin": x + 1, "ymin": y + 1, "xmax": x + side, "ymax": y + side}
        box = "".join(f"<{key}>{value}</{key}>" for key, value in corners.items())
        (root / "Annotations" / f"{name}.xml").write_text(
            f"<annotation><size><width>{SIZE_HW[1]}</width><height>{SIZE_HW[0]}</height>"
            f"<depth>3</depth></size><object><name>{list(COLORS)[number % 3]}</name>"
            f"<bndbox>{box}</bndbox></object></annotation>"
        )
    names = "".join(f"{number + 1:06d}\n" for number in range(6))
    (root / "ImageSets/Main/trainval.txt").write_text(names)
    (root / "ImageSets/Main/test.txt").write_text(names)
    return root


def make_tags(voc: Path, output: Path, split: str = "trainval") -> Path:
    assert wsis("tags", "--voc", voc, "--split", split, "--classes", *COLORS, "-o", output) == 0
    return output


def run_stages(tags: Path, images: Path, folder: Path) -> dict[str, bytes]:
    """Every stage from tags to proposals; the files that it leaves for the next ones."""
    data = ("--tags", tags, "--image-root", images)
    points, clusters = folder / "points/points_coarse.npz", folder / "clusters.npz"
    classifier = folder / "classifier"
    assert wsis("clues", "train", *data, "--output", classifier, *SMALL_NETWORK) == 0
    weights = ("--weights", classifier / "classifier.pth", "--kernel", "7", *CPU)
    assert wsis("clues", "points", *data, *weights, "--output", folder / "points") == 0
    assert wsis("clues", "cluster", "--points", points, "--output", clusters) == 0
    search, sam, both = (folder / f"{name}.npz" for name in ("search", "sam", "both"))
    kind = ("--kind", "selective_search", "--min-side", "4", *CPU)
    assert wsis("proposals", "grid", *data, *kind, "--output", search) == 0
    clicks = ("--coarse", points, "--cross", clusters, "--grid", "3", *CPU)
    assert wsis("proposals", "points", *data, *clicks, "--output", sam) == 0
    merge = ("--proposals", search, sam, "--output", both)
    assert wsis("proposals", "merge", "--tags", tags, *merge) == 0
    return {path.name: path.read_bytes() for path in (points, clusters, search, sam, both)}


@pytest.fixture(scope="module")
def done(voc, tmp_path_factory) -> Path:
    """A folder with tags.json and what every stage made of it."""
    folder = tmp_path_factory.mktemp("done")
    run_stages(make_tags(voc, folder / "tags.json"), voc / "JPEGImages", folder)
    return folder


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


class Calls:
    """Pickled, it calls something."""

    def __reduce__(self):
        return print, ("called",)


def change_file(path: Path, done: Path, **changes) -> None:
    good = read_proposal_file(done / "both.npz")
    changed = {name: change(getattr(good, name)) for name, change in changes.items()}
    write_proposals(path, Proposals(**(good.__dict__ | changed)))


def released(path: Path, ids: list[int]) -> None:
    content = {
        "boxes": [np.array([[1, 1, 9, 9]], np.uint16)] * 6,
        "scores": [np.ones(1)] * 6,
        "indexes": ids,
    }
    path.write_bytes(pickle.dumps(content))


def beyond(boxes: np.ndarray) -> np.ndarray:
    return boxes + np.float32([0, 0, 500, 0])


def with_nan(boxes: np.ndarray) -> np.ndarray:
    return np.where(np.arange(len(boxes))[:, None] == 1, np.nan, boxes)


BAD_PROPOSALS = {  # file, what makes it, what is said
    "outside.npz": (partial(change_file, boxes=beyond), "image 1.*outside of it"),
    "nan.npz": (partial(change_file, boxes=with_nan), "image 1.*box 1.*NaN"),
    "other.npz": (partial(change_file, ids=lambda i: np.char.add(i, "9")), "another dataset"),
    "less.npz": (
        partial(change_file, ids=lambda i: np.where(i == "6", "66", i)),
        "lacks 1 of 6 images, such as 6",
    ),
    "ids.pkl": (lambda p, d: released(p, [1, 2, 3, 4, 5, 7]), "'indexes' has no image 6"),
    "twice.pkl": (lambda p, d: released(p, [1, 2, 3, 4, 5, 5]), "twice in 'indexes'"),
    "calls.pkl": (lambda p, d: p.write_bytes(pickle.dumps(Calls())), "it holds builtins.print"),
    "none.npz": (lambda p, d: None, "no such file"),
}


@pytest.mark.parametrize(
    "step,name",
    [
        *(("merge", name) for name in BAD_PROPOSALS),
        *(("recall", name) for name in BAD_PROPOSALS if name.endswith(".npz")),
    ],
)
def test_proposals_that_cannot_be_end_in_one_line(done, voc, tmp_path, capsys, name, step):
    spoil, message = BAD_PROPOSALS[name]
    spoil(tmp_path / name, done)
    words = {
        "merge": ("--output", tmp_path / "result.npz"),
        "recall": ("--voc", voc, "--split", "trainval", "--output", tmp_path / "result.json"),
    }[step]
    words += ("--tags", done / "tags.json", "--proposals", tmp_path / name)
    ends_in_one_line(capsys, rf"{name}.*{message}", "proposals", step, *words)
    assert not list(tmp_path.glob("result*"))


def ends_in_one_line(capsys, message: str, command: str, *words: object) -> None:
    capsys.readouterr()
    assert wsis(command, *words) == 2
    printed = capsys.readouterr()
    (line,) = [x for x in printed.err.splitlines() if x.startswith(f"wsis {command}: ")]
    assert "Traceback" not in printed.err and "called" not in printed.out
    with pytest.raises(ValueError, match=message):
        raise ValueError(line)


@pytest.mark.parametrize(
    "rows,words,message",
    [
        ("000001.jpg,pink\n", ("--classes", "red"), r"labels.csv:2.*'pink' is not in the class"),
        ("nowhere.jpg,red\n", (), r"labels.csv:2 names the image .*nowhere.jpg, which is not"),
        ("000001.jpg,red\n000001.jpg,blue\n", (), r"labels.csv:3: image 000001.jpg has the tags"),
        ("000001.jpg,red\n", ("--classes", "red", "cow"), "no image of the split is tagged cow"),
        ("000001.jpg,red\n", ("--difficult",), "difficult=True: the source 'csv' reads only"),
    ],
)
def test_labels_that_cannot_be_end_in_one_line(voc, tmp_path, capsys, rows, words, message):
    (tmp_path / "labels.csv").write_text("image,label\n" + rows)
    csv = ("--csv", tmp_path / "labels.csv", "--image-root", voc / "JPEGImages")
    ends_in_one_line(capsys, message, "tags", *csv, *words, "-o", tmp_path / "tags.json")
    assert not list(tmp_path.glob("tags*"))


def test_classifiers_of_other_classes_end_in_one_line(voc, done, tmp_path, capsys):
    data = ("--tags", done / "tags.json", "--image-root", voc / "JPEGImages", *CPU)
    data += ("--output", tmp_path / "points")
    model = load_classifier(done / "classifier/classifier.pth").model
    save_classifier(tmp_path / "renamed.pth", model, ["blue", "green", "pink"])
    weaktr = WeakTrConfig(2, None, 16, 2, 2, 8, 32, mlp_ratio=2, reduction=2).build()
    torch.save({"model": weaktr.state_dict()}, tmp_path / "weaktr.pth")
    (tmp_path / "text.pth").write_text("no weights")
    for name, message in (
        ("renamed", r"trained on the 3 classes blue, green, pink, .*tags.json has the 3 blue"),
        ("weaktr", "weaktr.pth has 2 classes, the dataset 3"),
        ("text", "text.pth"),
        ("none", "none.pth: no such classifier"),
    ):
        words = ("points", *data, "--weights", tmp_path / f"{name}.pth")
        ends_in_one_line(capsys, message, "clues", *words)
    assert not (tmp_path / "points").exists()


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


def test_results_of_other_inputs_are_not_replaced(voc, done, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(done, copy)
    data = ("--tags", copy / "tags.json", "--image-root", voc / "JPEGImages")
    weights = ("--weights", copy / "classifier/classifier.pth", *CPU)
    points = PointFile(("1",), (SIZE_HW,), (Points.joined([]),), {"classes": ["blue"]})
    write_points(tmp_path / "others.npz", points)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/points_coarse.npz").write_text("mine")
    kept = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    train = ("train", *data, *SMALL_NETWORK, "--output", copy / "classifier", "--seed", "5")
    ends_in_one_line(capsys, "last.pth cannot be resumed .*seed: 0 -> 5", "clues", *train)
    words = ("points", *data, *weights, "--output")
    ends_in_one_line(capsys, "points made with other settings", "clues", *words, copy / "points")
    ends_in_one_line(
        capsys, "points_coarse.npz is there and not", "clues", *words, tmp_path / "mine"
    )
    words = ("cluster", "--points", tmp_path / "others.npz", "--output", copy / "clusters.npz")
    ends_in_one_line(capsys, "clusters.npz was made with other .*of", "clues", *words)
    words = ("grid", *data, *CPU, "--kind", "random", "--output", copy / "search.npz")
    ends_in_one_line(capsys, "search.npz was made with other method", "proposals", *words)
    words = ("merge", "--tags", copy / "tags.json", "--proposals", copy / "sam.npz")
    words += ("--output", copy / "both.npz")
    ends_in_one_line(capsys, "both.npz was made with other merged", "proposals", *words)
    assert {path: path.read_bytes() for path in kept} == kept


@pytest.mark.parametrize(
    "step,words,message",
    [
        ("grid", ("--kind", "random", "--grid", "4"), "--grid is for --kind segmenter"),
        ("grid", ("--count", "4"), "--count is for --kind random"),
        ("grid", ("--segmenter", "huge"), "segmenter 'huge'; expected one of tiny"),
        ("grid", ("--segmenter", "segment_anything:vit_b:/nowhere/b.pth"), "b.pth: no such file"),
        ("points", (), "give --coarse, --fine or --cross"),
        ("points", ("--coarse", "c.npz", "--no-grid", "--grid", "4"), "--no-grid makes no grid"),
        ("points", ("--coarse", "/nowhere/c.npz"), "/nowhere/c.npz: no such file"),
    ],
)
def test_requests_that_cannot_be_end_in_one_line(voc, done, tmp_path, capsys, step, words, message):
    data = ("--tags", done / "tags.json", "--image-root", voc / "JPEGImages", *CPU)
    output = ("--output", tmp_path / "p.npz")
    ends_in_one_line(capsys, message, "proposals", step, *data, *output, *words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words,message",
    [
        (("--network", "resnet", "--init", "imagenet"), "'resnet' begins with random weights"),
        (("--network", "weaktr", "--loss", "softmax"), "CAM classifiers have"),
        (("--network", "cam"), "describe the backbone of network 'cam'"),
        (("--network", "weaktr", "--init", "/nowhere/deit.pth"), "/nowhere/deit.pth: no such file"),
        (("--network", "resnet", "--val-tags", "v.json"), "needs both a tag file and a folder"),
    ],
)
def test_trainings_that_cannot_be_end_in_one_line(voc, done, tmp_path, capsys, words, message):
    data = ("--tags", done / "tags.json", "--image-root", voc / "JPEGImages", *CPU)
    output = ("--output", tmp_path / "classifier")
    ends_in_one_line(capsys, message, "clues", "train", *data, *output, *words)
    assert not (tmp_path / "classifier").exists()
