"""Input that WeakSAM's commands cannot use: one line, exit code 2, nothing damaged."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.bad_input.checks import refused
from tests.bad_input.test_annotation_files import edited, text
from tests.bad_input.test_checkpoints_and_configs import CHECKPOINTS
from tests.bad_input.world import PROGRAMS, World
from tests.bad_input.world import run as run_program
from tests.kill.stages import make_files

KEPT = "what an earlier run has written"
ONE = ("--num-gpus", 0, "--num-processes", 1)
DATA = ("--tags", "{0}/tags.json", "--image-root", "{0}/train")
WEIGHTS = ("--weights", "{0}/classifier/classifier.pth")
WORDS: dict[str, tuple] = {
    "clues points": ("clues", "points", *DATA, *WEIGHTS, *ONE, "--scales", 1.0),
    "clues boxes": ("clues", "boxes", *DATA, *WEIGHTS, *ONE),
    "proposals": (
        *("proposals", "points", *DATA, "--coarse", "{0}/points/points_coarse.npz"),
        *("--grid", 3, *ONE),
    ),
    "proposals merge": (
        *("proposals", "merge", "--tags", "{0}/tags.json", "--proposals", "{0}/own.npz"),
        "{0}/own.npz",
    ),
    "pseudo-boxes": (
        *("pseudo-boxes", "--detections", "{0}/detections.json", "--tags", "{0}/tags.json"),
    ),
    "box-masks": ("box-masks", "--boxes", "{0}/boxes.json", "--image-root", "{0}/train", *ONE),
    "evaluate-detections": (
        *("evaluate-detections", "--detections", "{0}/detections.json", "--tags"),
        *("{0}/tags.json", "--annotations", "{0}/annotations/instances_train.json"),
    ),
    "tags": ("tags", "--coco", "{0}/annotations/instances_train.json", "--allow-absent-classes"),
}
OUTPUTS = {"clues points": "points", "clues boxes": "found.json", "proposals": "sam.npz"}
OUTPUTS |= {"proposals merge": "both.npz"}


@pytest.fixture(scope="module")
def weak_files(tmp_path_factory) -> Path:
    return make_files(tmp_path_factory.mktemp("weak")) / "weak"


@pytest.fixture
def weak(weak_files, tmp_path) -> World:
    """A copy of the files, and a folder `out` with the output of an earlier run."""
    folder = tmp_path / "files"
    shutil.copytree(weak_files, folder, ignore=shutil.ignore_patterns("last.pth"))
    (folder / "out").mkdir()
    (folder / "out" / "earlier.json").write_text(KEPT)
    return World(folder, f"weak_{os.getpid()}")


def words(weak: World, name: str) -> list[str]:
    output = weak.out / OUTPUTS.get(name, "result.json")
    filled = [str(word).format(weak.folder) for word in WORDS[name]]
    return [*filled[1:], "--output", str(output)]


def refuse(weak: World, name: str, capfd: Any, *named: str) -> str:
    return refused(weak, WORDS[name][0], capfd, *named, words=words(weak, name))


@pytest.mark.parametrize("name", WORDS)
def test_unchanged_files_are_accepted(weak: World, name: str):
    assert run_program(WORDS[name][0], words(weak, name)) == 0


def of_entry(section: str, key: str, value: Any) -> Callable[[Path], None]:
    return edited(lambda content: content[section][1].update({key: value}))


TAGS = {
    "empty": text(""),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-20]),
    "a list": text("[]"),
    "deep nesting": text("[" * 100_000),
    "annotations in it": edited(lambda c: c.update(annotations=[])),
    "image is text": edited(lambda c: c["images"].append("x")),
    "image twice": edited(lambda c: c["images"].append(c["images"][0])),
    "unknown class": of_entry("images", "category_ids", [99]),
    "class is text": of_entry("images", "category_ids", ["a"]),
    "size is a float": of_entry("images", "height", 64.5),
    "no categories": edited(lambda c: c.pop("categories")),
}
READ_TAGS = ("clues points", "proposals", "pseudo-boxes", "evaluate-detections")
# What lists images for proposals need not be a tag file, so its tags are not looked at.
IMAGES_ONLY = ("annotations in it", "unknown class", "class is text", "no categories")


@pytest.mark.parametrize("fault", TAGS)
@pytest.mark.parametrize("name", READ_TAGS)
def test_tags(weak: World, capfd, name: str, fault: str):
    if name == "proposals" and fault in IMAGES_ONLY:
        pytest.skip("proposals read the list of images alone")
    TAGS[fault](weak.folder / "tags.json")
    refuse(weak, name, capfd, "tags.json")


def npz(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        arrays = dict(np.load(path))
        change(arrays)
        np.savez(path, **arrays)

    return edit


ARRAYS = {
    "empty": text(""),
    "no zip": text("no zip"),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-60]),
    "offsets lack": npz(lambda a: a.pop("offsets")),
    "offsets are floats": npz(lambda a: a.update(offsets=a["offsets"].astype(float))),
    "offsets go back": npz(lambda a: a.update(offsets=a["offsets"][::-1].copy())),
    "sizes of one axis": npz(lambda a: a.update(sizes=a["sizes"][:, 0])),
    "sizes of 10^9": npz(lambda a: a.update(sizes=a["sizes"] * 0 + 10**9)),
    "meta is a number": npz(lambda a: a.update(meta=np.array(5))),
    "objects": npz(lambda a: a.update(ids=np.array([{}, []], object))),
    "an image twice": npz(lambda a: a.update(ids=np.repeat(a["ids"][:1], len(a["ids"])))),
}
READ_ARRAYS = {"proposals": "points/points_coarse.npz", "proposals merge": "own.npz"}


@pytest.mark.parametrize("fault", ARRAYS)
@pytest.mark.parametrize("name", READ_ARRAYS)
def test_arrays(weak: World, capfd, name: str, fault: str):
    path = weak.folder / READ_ARRAYS[name]
    ARRAYS[fault](path)
    refuse(weak, name, capfd, path.name)


def of_detection(key: str, value: Any) -> Callable[[Path], None]:
    return edited(lambda rows: rows[1].update({key: value}))


DETECTIONS = {
    "empty": text(""),
    "no detection": text("[]"),
    "an object": text("{}"),
    "a number in it": edited(lambda rows: rows.append(5)),
    "unknown image": of_detection("image_id", 99),
    "image is a list": of_detection("image_id", [1]),
    "unknown class": of_detection("category_id", 99),
    "score NaN": of_detection("score", float("nan")),
    "score is text": of_detection("score", "1"),
    "score below 0": of_detection("score", -1),
    "box of 3": of_detection("bbox", [1, 2, 3]),
    "box NaN": of_detection("bbox", [float("nan"), 2, 3, 4]),
    "box without area": of_detection("bbox", [1, 2, 0, 4]),
    "box outside": of_detection("bbox", [1, 2, 300, 4]),
}


@pytest.mark.parametrize("fault", DETECTIONS)
@pytest.mark.parametrize("name", ["pseudo-boxes", "evaluate-detections"])
def test_detections(weak: World, capfd, name: str, fault: str):
    DETECTIONS[fault](weak.folder / "detections.json")
    refuse(weak, name, capfd, "detections.json")


BOXES = {
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-20]),
    "no box": edited(lambda c: c["annotations"][1].pop("bbox")),
    "box NaN": of_entry("annotations", "bbox", [float("nan"), 2, 3, 4]),
    "box outside": of_entry("annotations", "bbox", [1, 2, 300, 4]),
    "unknown image": of_entry("annotations", "image_id", 99),
    "NaN beside the box": of_entry("annotations", "score", float("nan")),
}


@pytest.mark.parametrize("fault", BOXES)
def test_boxes(weak: World, capfd, fault: str):
    BOXES[fault](weak.folder / "boxes.json")
    refuse(weak, "box-masks", capfd, "" if "NaN beside" in fault else "boxes.json")


FOREIGN = ("texts", "a weight is missing", "a weight of another shape", "NaN weights", "a list")


@pytest.mark.parametrize("fault", ["missing", "empty", "text", "cut off", "runs code", *FOREIGN])
@pytest.mark.parametrize("name", ["clues points", "clues boxes"])
def test_classifiers(weak: World, capfd, name: str, fault: str):
    path = weak.folder / "classifier" / "classifier.pth"
    CHECKPOINTS[fault](path)
    refuse(weak, name, capfd, path.name)
    assert not (path.parent / "harm").exists()


@pytest.mark.parametrize("fault", ["missing", "empty", "another size"])
@pytest.mark.parametrize("name", ["clues points", "proposals", "box-masks"])
def test_images(weak: World, capfd, name: str, fault: str):
    path = sorted((weak.folder / "train").iterdir())[1]
    if fault == "another size":
        shutil.copy(next((weak.folder / "train").iterdir()), path)
        content = json.loads((weak.folder / "tags.json").read_text())
        for file in ("tags.json", "boxes.json"):
            content = json.loads((weak.folder / file).read_text())
            content["images"][1]["width"] += 1
            (weak.folder / file).write_text(json.dumps(content))
        points = weak.folder / "points" / "points_coarse.npz"
        arrays = dict(np.load(points))
        arrays["sizes"][1, 1] += 1
        np.savez(points, **arrays)
    elif fault == "missing":
        path.unlink()
    else:
        path.write_bytes(b"")
    refused_with_shards(weak, name, capfd, path.name)


def refused_with_shards(weak: World, name: str, capfd: Any, named: str) -> None:
    """Refused, but the shards of the images before it stay for the next run."""
    before = weak.snapshot()
    capfd.readouterr()
    assert run_program(WORDS[name][0], words(weak, name)) == 2
    err = capfd.readouterr().err
    assert named in err and "Traceback" not in err
    after = weak.snapshot()
    assert all(after[key] == value for key, value in before.items())


def test_all_programs_of_the_world_have_their_own_cases():
    assert not set(PROGRAMS) & {WORDS[name][0] for name in WORDS}
