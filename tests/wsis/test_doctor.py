"""`wsis doctor`: it finds every planted fault, and none in whole datasets."""

import json
import os
from pathlib import Path

import pytest

from tests.bad_input.world import World, copy_world, make_pristine, run
from weaklabels.shapes.dataset import make_shapes

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
SHARED = Path(os.environ.get("SHARED_DATA", SHARED))


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    return make_pristine(tmp_path_factory.mktemp("pristine") / "files")


@pytest.fixture
def world(pristine, tmp_path) -> World:
    return copy_world(pristine, tmp_path / "files")


def doctor(capsys, *words: object) -> tuple[int, dict]:
    code = run("doctor", [*map(str, words), "--json"])
    return code, json.loads(capsys.readouterr().out)


def files(world: World) -> list[object]:
    folder = world.folder
    return [
        *("--annotations", folder / "strong.json", "--weak-annotations", folder / "weak.json"),
        *("--image-root", folder / "images", "--records", folder / "weak.jsonl"),
    ]


def test_a_whole_dataset_has_no_fault(world, capsys):
    code, found = doctor(capsys, *files(world))
    assert code == 0 and found["faults"] == []
    assert any(note.startswith("torch ") for note in found["notes"])


def test_every_planted_fault_is_found(world, capsys):
    def spoil(content: dict) -> None:
        first, second, third, fourth = content["annotations"][:4]
        first["segmentation"] = [[1e9, 0, 1, 1, 2, 2]]
        second["category_id"] = 99
        third["bbox"] = [float("nan"), 0, 1, 1]
        fourth["id"] = first["id"]
        content["images"][2]["file_name"] = "../3.png"

    def move(content: dict) -> None:
        content["annotations"][0]["point"] = [999, 1]
        content["annotations"][1]["bbox"] = [1, 2, 3, 4]

    world.edit("strong.json", lambda c: spoil(c) or c["images"][2].update(file_name="3.png"))
    world.edit("weak.json", move)
    (world.folder / "images" / "1.png").write_text("no image")
    (world.folder / "images" / "2.png").unlink()
    world.edit_record("weak.jsonl", lambda record: record.update(image_id=77))
    code, found = doctor(capsys, *files(world))
    text = "\n".join(found["faults"])
    assert code == 1
    planted = (
        "annotation id 10: a polygon lies farther outside",
        "annotation id 11: category_id 99",
        "annotation id 20: bbox",
        "annotation id 10: occurs twice",
        "annotation id 40: point is outside",
        "1 annotations of this weak file have masks or boxes",
        "images/1.png is not readable",
        "images/2.png, which is not there",
        "image 77 is not in",
        "1 images of",
    )
    assert [what for what in planted if what not in text] == []


def test_overlap_of_strong_and_weak(world, capsys):
    strong = world.folder / "strong.json"
    words = [strong if w == world.folder / "weak.json" else w for w in files(world)]
    code, found = doctor(capsys, *words[:6])
    assert code == 1 and any("3 images have strong labels" in fault for fault in found["faults"])


def test_a_tag_file_is_examined(world, capsys):
    images = json.loads((world.folder / "train.json").read_text())["images"]
    tagged = [image | {"category_ids": [1]} for image in images]
    categories = [{"id": 1, "name": "box"}, {"id": 5, "name": "disc"}]
    content = {"images": tagged, "categories": categories}
    tags = world.folder / "tags.json"
    tags.write_text(json.dumps(content))
    words = ("--annotations", tags, "--image-root", world.folder / "images")
    code, found = doctor(capsys, *words)
    assert code == 0 and any("no image is tagged disc" in note for note in found["notes"])
    (world.folder / "images" / "3.png").unlink()
    tagged[0]["width"] = 65
    tags.write_text(json.dumps(content))
    code, found = doctor(capsys, *words)
    assert code == 1 and len(found["faults"]) == 2


def test_shapes_have_no_fault(tmp_path, capsys):
    make_shapes(tmp_path, train=5, val=2, size=64)
    for split in ("train", "val"):
        path = tmp_path / "annotations" / f"instances_{split}.json"
        code, found = doctor(capsys, "--annotations", path, "--image-root", tmp_path / split)
        assert code == 0 and found["faults"] == []


def test_voc_mini_has_no_fault(tmp_path, capsys):
    voc = SHARED / "voc_mini" / "VOCdevkit" / "VOC2007"
    if not voc.is_dir():
        pytest.skip("the shared datasets are not here")
    tags, masks = tmp_path / "tags.json", tmp_path / "masks.json"
    tagged = ("--voc", voc, "--split", "trainval", "--output", tags, "--allow-absent-classes")
    assert run("tags", list(map(str, tagged))) == 0
    made = ("--voc", voc, "--split", "trainval", "--output", masks)
    assert run("voc-to-coco", list(map(str, made))) == 0
    capsys.readouterr()
    for path in (tags, masks):
        images = voc / "JPEGImages"
        code, found = doctor(capsys, "--annotations", path, "--image-root", images)
        assert code == 0 and found["faults"] == []


DATASETS = {
    "coco_mini": ("annotations/instances_train2017.json", "train2017"),
    "nuclei": ("annotations/instances_train.json", "train"),
}


@pytest.mark.parametrize("name", DATASETS)
def test_real_datasets_have_no_fault(name, capsys):
    annotations, images = (SHARED / name / part for part in DATASETS[name])
    if not annotations.is_file():
        pytest.skip("the shared datasets are not here")
    code, found = doctor(capsys, "--annotations", annotations, "--image-root", images)
    assert found["faults"] == [] and code == 0
