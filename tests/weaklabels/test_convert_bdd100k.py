"""BDD100K labels in both official forms, on small generated samples."""

import json
import re

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

from tests.programs import convert_bdd100k as main
from weaklabels.converters.bdd100k import flatten_curves

HEIGHT, WIDTH = 24, 40
SQUARE = [[4, 4], [14, 4], [14, 14], [4, 14]]


@pytest.fixture
def image_root(tmp_path):
    root = tmp_path / "train"
    root.mkdir()
    for name in ("a.jpg", "b.jpg"):
        Image.new("RGB", (WIDTH, HEIGHT)).save(root / name)
    return root


def label(category, vertices, types=None, **attributes):
    poly = {"vertices": vertices, "types": types or "L" * len(vertices), "closed": True}
    return {"id": "7", "category": category, "attributes": attributes, "poly2d": [poly]}


def convert(tmp_path, image_root, frames):
    source, output = tmp_path / "polygons.json", tmp_path / "out.json"
    source.write_text(json.dumps(frames))
    words = ["--polygons", str(source), "--image-root", str(image_root), "--output", str(output)]
    return main(words), output


def test_polygons_become_coco_instances(tmp_path, image_root, capsys):
    far = [[x + 20, y] for x, y in SQUARE]
    frames = [
        {"name": "a.jpg", "labels": [label("person", SQUARE), label("bike", far, crowd=True)]},
        {"name": "b.jpg", "labels": [label("trailer", SQUARE), label("car", far, ignored=True)]},
    ]
    code, output = convert(tmp_path, image_root, frames)
    assert code == 0 and "left out: 1 trailer" in capsys.readouterr().out
    coco = COCO(str(output))
    annotations = coco.loadAnns(coco.getAnnIds())
    names = [coco.cats[a["category_id"]]["name"] for a in annotations]
    assert names == ["pedestrian", "bicycle", "car"]
    assert [a["iscrowd"] for a in annotations] == [0, 1, 1]
    assert [a["area"] for a in annotations] == [100, 100, 100]
    assert [a["bbox"] for a in annotations] == [[4, 4, 10, 10], [24, 4, 10, 10], [24, 4, 10, 10]]
    for annotation in annotations:
        assert coco.annToMask(annotation).sum() == 100


@pytest.mark.parametrize("types", ["LCCCL", "LCCLL"])
def test_curves_follow_the_cubic(types):
    """Controls on the chord make the curve the chord itself, whichever way its end is marked."""
    vertices = [[0, 0], [3, 0], [6, 0], [9, 0], [9, 9]]
    outline = flatten_curves(vertices, types, "here")
    on_chord = outline[outline[:, 1] == 0]
    np.testing.assert_allclose(on_chord[:, 1], 0)
    assert on_chord[0].tolist() == [0, 0] and on_chord[-1].tolist() == [9, 0]
    assert outline[-1].tolist() == [9, 9]


def test_a_circle_of_four_curves_has_its_area():
    k, r = 0.5522847498, 10.0
    vertices = [[r, 0], [r, k * r], [k * r, r], [0, r], [-k * r, r], [-r, k * r], [-r, 0]]
    vertices += [[-r, -k * r], [-k * r, -r], [0, -r], [k * r, -r], [r, -k * r]]
    outline = flatten_curves(vertices, "LCCCCCCCCCCC", "here")
    x, y = outline.T
    area = 0.5 * abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))
    assert abs(area / (np.pi * r**2) - 1) < 0.01


@pytest.mark.parametrize("vertices,types", [(SQUARE, "LLL"), (SQUARE, "CCCL"), (SQUARE, "LLCL")])
def test_wrong_types_name_the_label(tmp_path, image_root, capsys, vertices, types):
    frames = [{"name": "a.jpg", "labels": [label("car", vertices, types)]}]
    code, output = convert(tmp_path, image_root, frames)
    assert code == 2 and not output.exists()
    assert "frame 'a.jpg', label 7" in capsys.readouterr().err


def test_a_missing_image_is_named(tmp_path, image_root, capsys):
    assert convert(tmp_path, image_root, [{"name": "gone.jpg", "labels": []}])[0] == 2
    assert "gone.jpg" in capsys.readouterr().err


def write_bitmask(path, instances):
    """instances: (category id, attribute bits, instance id, row slice, column slice)."""
    image = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    for category, bits, instance, rows, columns in instances:
        image[rows, columns] = (category, bits, instance >> 8, instance & 255)
    Image.fromarray(image, "RGBA").save(path)


def test_bitmasks_become_coco_instances(tmp_path, image_root):
    folder, output = tmp_path / "bitmasks", tmp_path / "out.json"
    folder.mkdir()
    first, second = (slice(0, 5), slice(0, 5)), (slice(10, 14), slice(20, 30))
    write_bitmask(folder / "a.png", [(3, 0, 1, *first), (3, 2, 300, *second)])
    write_bitmask(folder / "b.png", [(8, 4, 5, *first), (1, 1, 6, *second)])
    words = ["--bitmasks", str(folder), "--image-root", str(image_root), "--output", str(output)]
    assert main(words) == 0
    content = json.loads(output.read_text())
    assert [i["file_name"] for i in content["images"]] == ["a.jpg", "b.jpg"]
    got = [(a["image_id"], a["category_id"], a["iscrowd"]) for a in content["annotations"]]
    assert got == [(1, 3, 0), (1, 3, 1), (2, 8, 0), (2, 1, 1)]
    mask = mask_utils.decode(content["annotations"][1]["segmentation"])
    assert mask[second].all() and mask.sum() == 40


def test_another_png_is_refused(tmp_path, image_root, capsys):
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "a.png")
    words = ["--bitmasks", str(tmp_path), "--image-root", str(image_root), "--output", "x.json"]
    assert main(words) == 2
    assert "an RGBA PNG" in capsys.readouterr().err


def changed(**change):
    """A good label with some keys changed; None leaves them out."""
    return {k: v for k, v in (label("car", SQUARE) | change).items() if v is not None}


def part(**change):
    return [{k: v for k, v in (label("car", SQUARE)["poly2d"][0] | change).items() if v != ""}]


BAD_LABELS = [
    (changed(poly2d=None), "label 7: has no 'poly2d'.*boxes only"),
    (label("car", SQUARE) | {"poly2d": None}, "label 7: has no 'poly2d'.*boxes only"),
    (changed(poly2d=None, id=None), "label number 0: has no 'poly2d'"),
    (changed(poly2d=part(types="")), "label 7: .*lacks .'types'.*'vertices', 'types' and 'closed'"),
    (changed(poly2d=part(vertices="")), "label 7: .*lacks .'vertices'"),
    (changed(poly2d=part(types=None)), "label 7: 4 vertices do not fit the types None"),
    (changed(poly2d=part(vertices=None)), "label 7: .*vertices"),
    (changed(poly2d=part(vertices=[["x", 1], [2, 2], [3, 3], [4, 4]])), "label 7: .*vertices"),
    (changed(poly2d=part(vertices=[[1, 1], [2, 2], [3, None], [4, 4]])), "label 7: .*vertices"),
    (changed(poly2d=SQUARE), "label 7: .*lacks"),
    (changed(category=None), "label 7: has no 'category'"),
]


@pytest.mark.parametrize("bad,message", BAD_LABELS)
def test_a_broken_label_is_named(tmp_path, image_root, capsys, bad, message):
    code, output = convert(tmp_path, image_root, [{"name": "a.jpg", "labels": [bad]}])
    assert code == 2 and not output.exists()
    want = f"{re.escape(str(tmp_path / 'polygons.json'))}: frame 'a.jpg', {message}"
    assert re.search(want, capsys.readouterr().err)


def test_a_label_needs_no_id(tmp_path, image_root):
    code, output = convert(
        tmp_path, image_root, [{"name": "a.jpg", "labels": [changed(id=None, attributes=None)]}]
    )
    assert code == 0 and len(json.loads(output.read_text())["annotations"]) == 1


@pytest.mark.parametrize(
    "text,message",
    [
        ('[{"name": "a.jpg",', "not a json file"),
        ("{}", "no list of frames"),
        ('"text"', "no list of frames"),
        ('[{"labels": []}]', "frame number 0 has no 'name'"),
        ("[7]", "frame number 0 has no 'name'"),
    ],
)
def test_another_file_is_refused_by_name(tmp_path, image_root, capsys, text, message):
    source = tmp_path / "polygons.json"
    source.write_text(text)
    words = ["--polygons", str(source), "--image-root", str(image_root), "--output", "x.json"]
    assert main(words) == 2
    assert re.search(f"{re.escape(str(source))}: .*{message}", capsys.readouterr().err)


def test_an_unreadable_image_is_named(tmp_path, image_root, capsys):
    (image_root / "a.jpg").write_bytes(b"no image")
    assert convert(tmp_path, image_root, [{"name": "a.jpg", "labels": []}])[0] == 2
    error = capsys.readouterr().err
    assert "frame 'a.jpg'" in error and str(image_root / "a.jpg") in error
