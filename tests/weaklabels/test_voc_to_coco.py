"""Masks of VOC 2012 and SBD into COCO form, on small generated trees."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from scipy.io import savemat

from detectron2.data import MetadataCatalog
from detectron2.data.datasets import load_coco_json
from tests.programs import voc_to_coco as main

HEIGHT, WIDTH = 20, 30
CAT, DOG = 8, 12
PALETTE = [value for index in range(256) for value in (index, 255 - index, index // 2)]


def block(*parts):
    """(H, W) uint8 of zeros with values in slices: (value, rows, columns)."""
    array = np.zeros((HEIGHT, WIDTH), np.uint8)
    for value, rows, columns in parts:
        array[slice(*rows), slice(*columns)] = value
    return array


def write_index_png(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    image.putpalette(PALETTE)  # makes it a palette image
    image.save(path)


@pytest.fixture
def voc(tmp_path):
    """2007_000001 (train): cat 1, void border, dog 2 of two parts; 2007_000002 (val): nothing."""
    folder = tmp_path / "VOC2012"
    void = (255, (2, 4), (2, 12))
    objects = block(void, (1, (4, 10), (2, 12)), (2, (12, 14), (0, 5)), (2, (12, 14), (20, 25)))
    classes = block(
        void, (CAT, (4, 10), (2, 12)), (DOG, (12, 14), (0, 25)), (CAT, (12, 13), (0, 1))
    )
    for name, (instance, category) in {
        "2007_000001": (objects, classes),
        "2007_000002": (block(), block()),
    }.items():
        write_index_png(folder / "SegmentationObject" / f"{name}.png", instance)
        write_index_png(folder / "SegmentationClass" / f"{name}.png", category)
    (folder / "JPEGImages").mkdir()
    for name in ("2007_000001", "2007_000002", "2008_000003"):
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "JPEGImages" / f"{name}.jpg")
    lists = folder / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_000001\n")
    (lists / "val.txt").write_text("2007_000002\n")
    return folder


def write_sbd(folder, name, segmentation, categories):
    (folder / "inst").mkdir(parents=True, exist_ok=True)
    columns = np.array(categories, np.uint8).reshape(-1, 1)
    truth = {"Segmentation": segmentation, "Categories": columns, "Boundaries": columns}
    savemat(folder / "inst" / f"{name}.mat", {"GTinst": truth}, do_compression=True)


@pytest.fixture
def sbd(tmp_path):
    """2008_000003 (train) has a cat and a dog; train also lists an image of VOC's val."""
    folder = tmp_path / "benchmark_RELEASE" / "dataset"
    both = block((1, (0, 5), (0, 5)), (2, (10, 20), (10, 20)))
    write_sbd(folder, "2008_000003", both, [DOG, CAT])
    (folder / "train.txt").write_text("2008_000003\n2007_000002\n")
    (folder / "val.txt").write_text("2007_000001\n")
    return folder


def run(voc, output, *words, split="train"):
    return main(["--voc", str(voc), "--split", split, "--output", str(output), *map(str, words)])


def test_palette_masks_become_coco_instances(voc, tmp_path):
    output = tmp_path / "annotations" / "instances_train.json"
    assert run(voc, output) == 0
    coco = COCO(str(output))
    assert [image["file_name"] for image in coco.dataset["images"]] == ["2007_000001.jpg"]
    cat, dog = coco.dataset["annotations"]
    assert (cat["image_id"], cat["category_id"], cat["iscrowd"]) == (2007000001, CAT, 0)
    assert cat["bbox"] == [2, 4, 10, 6] and cat["area"] == 60
    # one of the dog's pixels is called a cat in SegmentationClass
    assert coco.cats[dog["category_id"]]["name"] == "dog" and dog["area"] == 20
    want = block((1, (12, 14), (0, 5)), (1, (12, 14), (20, 25)))
    np.testing.assert_array_equal(coco.annToMask(dog), want)
    assert len(coco.cats) == 20


def test_an_image_without_objects_stays(voc, tmp_path, capsys):
    output = tmp_path / "val.json"
    assert run(voc, output, split="val") == 0
    content = json.loads(output.read_text())
    assert len(content["images"]) == 1 and content["annotations"] == []
    assert "0 instances in 1 images" in capsys.readouterr().out


def test_sbd_gives_the_images_that_voc_has_no_masks_of(voc, sbd, tmp_path):
    output = tmp_path / "train_aug.json"
    assert run(voc, output, "--sbd", sbd, "--without", "val") == 0
    records = load_coco_json(str(output), str(voc / "JPEGImages"), "coco_form_voc")
    MetadataCatalog.remove("coco_form_voc")
    assert [record["image_id"] for record in records] == [2007000001, 2008000003]
    classes = [[a["category_id"] for a in record["annotations"]] for record in records]
    assert classes == [[CAT - 1, DOG - 1], [DOG - 1, CAT - 1]]
    assert [a["bbox"] for a in records[1]["annotations"]] == [[0, 0, 5, 5], [10, 10, 10, 10]]


def test_equal_input_gives_equal_bytes(voc, sbd, tmp_path):
    outputs = [tmp_path / name for name in ("first.json", "second.json")]
    for output in outputs:
        assert run(voc, output, "--sbd", sbd) == 0
    assert outputs[0].read_bytes() == outputs[1].read_bytes()


def test_colours_are_refused(voc, tmp_path, capsys):
    path = voc / "SegmentationObject" / "2007_000001.png"
    Image.open(path).convert("RGB").save(path)
    assert run(voc, tmp_path / "out.json") == 2
    assert "2007_000001.png: mode RGB" in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize(
    "classes,message",
    [
        (block((255, (0, 20), (0, 30))), "object 1 has the classes [255]"),
        (block((21, (4, 10), (2, 12))), "object 1 has the classes [21]"),
        (np.zeros((HEIGHT, WIDTH + 1), np.uint8), "SegmentationClass has (20, 31)"),
    ],
)
def test_objects_need_a_class(voc, tmp_path, capsys, classes, message):
    write_index_png(voc / "SegmentationClass" / "2007_000001.png", classes)
    assert run(voc, tmp_path / "out.json") == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "segmentation,categories,message",
    [
        (block((3, (0, 5), (0, 5))), [CAT, DOG], "instance 3 of 2 categories"),
        (block((1, (0, 5), (0, 5))), [21], "category 21; expected 1 to 20"),
        (block((1, (0, 5), (0, 5))).T.copy(), [CAT], "its masks are (30, 20)"),
    ],
)
def test_odd_sbd_files_are_refused(voc, sbd, tmp_path, capsys, segmentation, categories, message):
    write_sbd(sbd, "2008_000003", segmentation, categories)
    assert run(voc, tmp_path / "out.json", "--sbd", sbd) == 2
    error = capsys.readouterr().err
    assert message in error and "2008_000003" in error


def test_a_file_that_is_cut_off_is_named(voc, sbd, tmp_path, capsys):
    path = sbd / "inst" / "2008_000003.mat"
    path.write_bytes(path.read_bytes()[:150])
    assert run(voc, tmp_path / "out.json", "--sbd", sbd) == 2
    assert "2008_000003.mat holds no 'GTinst'" in capsys.readouterr().err
    path = voc / "SegmentationObject" / "2007_000001.png"
    path.write_bytes(path.read_bytes()[:60])
    assert run(voc, tmp_path / "out.json") == 2
    assert "2007_000001.png': Truncated File Read" in capsys.readouterr().err


def test_what_is_missing_is_named_with_its_source(voc, sbd, tmp_path, capsys):
    (sbd / "inst" / "2008_000003.mat").unlink()
    assert run(voc, tmp_path / "out.json", "--sbd", sbd) == 2
    assert "2008_000003.mat. Download https://" in capsys.readouterr().err
    (sbd / "val.txt").unlink()
    assert run(voc, tmp_path / "out.json", "--sbd", sbd) == 2
    assert "val.txt is not there. Download https://" in capsys.readouterr().err
    assert run(tmp_path / "VOC2012" / "gone", tmp_path / "out.json") == 2
    assert "VOCtrainval_11-May-2012.tar" in capsys.readouterr().err
    (voc / "JPEGImages" / "2007_000001.jpg").unlink()
    assert run(voc, tmp_path / "out.json") == 2
    assert "image 2007_000001 names the image" in capsys.readouterr().err
