"""The shapes data set: deterministic, valid COCO, and as varied as its description says."""

import json

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from tests.programs import make_shapes as main
from weaklabels.shapes.scene import CLASSES, MIN_VISIBLE, draw_scene, form_contours


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    assert main([str(folder), "--train", "60", "--val", "3", "--size", "96", "--seed", "4"]) == 0
    return folder


@pytest.fixture(scope="module")
def train(shapes):
    return COCO(shapes / "annotations" / "instances_train.json")


def files_of(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_same_seed_gives_the_same_bytes_and_another_seed_does_not(tmp_path):
    args = ["--train", "3", "--val", "2", "--size", "64"]
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert main([str(tmp_path / name), *args, "--seed", seed]) == 0
    a, b, c = (files_of(tmp_path / name) for name in "abc")
    assert len(a) == 7
    assert a == b
    assert all(a[name] != c[name] for name in a)


def test_an_image_does_not_depend_on_how_many_are_made(tmp_path):
    for name, count in (("few", "2"), ("many", "4")):
        main([str(tmp_path / name), "--train", count, "--val", "1", "--size", "64"])
    few, many = files_of(tmp_path / "few"), files_of(tmp_path / "many")
    images = [name for name in few if name.suffix == ".jpg"]
    assert len(images) == 3
    assert all(few[name] == many[name] for name in images)


def test_annotations_describe_their_masks(shapes, train):
    assert len(train.imgs) == 60
    for image in train.imgs.values():
        pixels = cv2.imread(str(shapes / "train" / image["file_name"]))
        assert pixels.shape == (image["height"], image["width"], 3)
        assert 72 <= min(pixels.shape[:2]) <= max(pixels.shape[:2]) == 96
    for annotation in train.anns.values():
        mask = train.annToMask(annotation)
        ys, xs = np.nonzero(mask)
        x, y, w, h = annotation["bbox"]
        assert annotation["area"] == pytest.approx(mask.sum(), rel=0.12)
        # The tip of a star or triangle is thinner than a pixel up to two pixels from its end.
        np.testing.assert_allclose(
            [x, y, x + w, y + h], [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], atol=2
        )


def test_every_class_form_of_mask_and_size_occurs(train):
    annotations = list(train.anns.values())
    single = [a for a in annotations if not a["iscrowd"]]
    assert {a["category_id"] for a in single} == set(range(1, len(CLASSES) + 1))
    assert {type(a["segmentation"]) for a in single} == {list, dict}
    crowds = [a for a in annotations if a["iscrowd"]]
    assert crowds
    assert all(isinstance(a["segmentation"]["counts"], list) for a in crowds)
    sides = np.array([max(a["bbox"][2:]) for a in single]) / 96
    assert sides.min() < 0.2
    assert sides.max() > 0.55


def test_masks_never_overlap_and_some_have_holes(train):
    holes = 0
    for image_id in train.imgs:
        masks = [train.annToMask(a) for a in train.imgToAnns[image_id]]
        if not masks:
            continue
        # Polygons are rasterised by other rules than drawn: single edge pixels may be shared.
        overlap = (np.sum(masks, axis=0, dtype=np.int64) > 1).sum()
        assert overlap <= 0.05 * np.sum(masks)
        for mask in masks:
            outlines, tree = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
            holes += int((tree[0][:, 3] >= 0).any())
    assert holes > 5


def test_what_stays_visible_deserves_its_label():
    items = [i for n in range(20) for i in draw_scene(np.random.default_rng(n), 96).items]
    covered = [i.visible.sum() / i.area for i in items]
    assert min(covered) >= MIN_VISIBLE
    assert sum(share < 1 for share in covered) > 10


def test_splits_share_no_image_id(shapes):
    train, val = (
        json.loads((shapes / "annotations" / f"instances_{split}.json").read_text())
        for split in ("train", "val")
    )
    assert not {i["id"] for i in train["images"]} & {i["id"] for i in val["images"]}
    assert train["categories"] == val["categories"]


@pytest.mark.parametrize("class_index", range(len(CLASSES)))
def test_forms_fill_the_unit_circle(class_index):
    for seed in range(5):
        outline = form_contours(np.random.default_rng(seed), class_index)[0]
        reach = np.linalg.norm(outline, axis=1).max()
        assert 0.95 < reach < 1.1


def test_forms_and_classes_of_a_scene_can_be_limited(tmp_path):
    flags = ["--train", "40", "--val", "1", "--size", "64"]
    assert main([str(tmp_path), *flags, "--max-forms", "4", "--classes-per-image", "2"]) == 0
    coco = COCO(tmp_path / "annotations" / "instances_train.json")
    forms = [len([a for a in coco.imgToAnns[i] if not a["iscrowd"]]) for i in coco.imgs]
    classes = [len({a["category_id"] for a in coco.imgToAnns[i]}) for i in coco.imgs]
    assert max(forms) == 4
    assert max(classes) == 2
    assert {a["category_id"] for a in coco.anns.values()} == set(range(1, len(CLASSES) + 1))
    assert coco.dataset["info"]["description"].endswith("4 forms, at most 2 classes an image")


def test_scenes_hold_at_least_as_many_forms_as_asked_for(tmp_path):
    flags = ["--train", "40", "--val", "1", "--min-forms", "4", "--max-forms", "4"]
    assert main([str(tmp_path), *flags]) == 0
    coco = COCO(tmp_path / "annotations" / "instances_train.json")
    forms = [len([a for a in coco.imgToAnns[i] if not a["iscrowd"]]) for i in coco.imgs]
    assert sum(count == 4 for count in forms) > 30  # some find no place, some scenes are empty
    assert max(forms) == 4
    assert "at least 4 forms" in coco.dataset["info"]["description"]


@pytest.mark.parametrize(
    "flag",
    [
        *("--min-forms=0", "--min-forms=7"),
        *("--train=0", "--val=0", "--size=20", "--seed=-1"),
        *("--max-forms=0", "--classes-per-image=0", "--classes-per-image=8"),
    ],
)
def test_senseless_numbers_are_refused(flag, tmp_path, capsys):
    assert main([str(tmp_path), flag]) == 2
    assert flag.split("=")[0] in capsys.readouterr().err
