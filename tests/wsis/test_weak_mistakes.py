"""Mistakes in the input of wsis tags, clues and proposals: one line, code 2, nothing lost."""

import pickle
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.wsis.weak_data import CPU, SIZE_HW, SMALL_NETWORK, wsis
from weaksam.clues.checkpoint import load_classifier, save_classifier
from weaksam.clues.points import PointFile, Points, write_points
from weaksam.clues.weaktr import WeakTrConfig
from weaksam.proposals.files import Proposals, read_proposal_file, write_proposals


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
