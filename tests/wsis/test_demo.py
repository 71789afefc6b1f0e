"""The demo: its records against the tools it shortens, its pictures, and its messages."""

import json
import re
from functools import partial

import cv2
import numpy as np
import pytest
import torch
from pycocotools import mask as mask_utils

from detectron2.engine import DefaultPredictor
from maskrefinenet import MaskRefiner
from maskrefinenet.checkpoint import NetworkConfig, network_content, save_atomically
from tests.wsis.small_network import (
    CLASS_NAMES,
    CONFIG_FILE,
    OPTIONS,
    make_images,
    make_weights,
    read_jsonl,
    small_config,
)
from wsis.cli.main import program

demo, generate = partial(program, "demo"), partial(program, "generate")

POINTS = ("20,30,disc", "61.5,40,6", "70,70,star")
IDS = range(11, 18)  # of the classes in the annotation files: not their indices


class Studio:
    """A checkpoint, images, and `run`, which calls the demo with them."""

    def __init__(self, folder):
        self.folder = folder
        self.weights = make_weights(folder / "weights.pth")
        self.annotations, self.images = make_images(folder / "shapes")
        self.paths = sorted(self.images.glob("*.jpg"))
        self.classes_json = folder / "classes.json"
        categories = [{"id": i, "name": name} for i, name in zip(IDS, CLASS_NAMES, strict=True)]
        self.classes_json.write_text(json.dumps({"categories": categories[::-1]}))

    def words(self, output, *flags, images=None, points=POINTS, weights=None):
        images = self.paths[:1] if images is None else images
        words = ["--config-file", CONFIG_FILE, "--num-gpus", "0", "--output", output]
        words += [word for point in points for word in ("--point", point)]
        if not any(str(flag).startswith("--classes") for flag in flags):
            flags = (*flags, "--classes-json", self.classes_json)
        words += [*flags, "--input", *images, *OPTIONS]
        words += ["MODEL.WEIGHTS", self.weights if weights is None else weights]
        return [str(word) for word in words]

    def run(self, output, *flags, **options):
        assert demo(self.words(output, *flags, **options)) == 0
        return read_jsonl(output / "predictions.jsonl")


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    return Studio(tmp_path_factory.mktemp("demo"))


def decode(instance):
    return mask_utils.decode(instance["segmentation"]).astype(bool)


def test_points_give_the_records_of_pseudo_label_generation(studio, tmp_path):
    (record,) = studio.run(tmp_path / "out")
    image = {"id": 1, "file_name": studio.paths[0].name, "width": 96}
    image["height"], image["width"] = cv2.imread(str(studio.paths[0])).shape[:2]
    classes = [11, 17, 14]
    annotations = [
        {"id": i + 1, "image_id": 1, "category_id": classes[i], "iscrowd": 0}
        | {"point": [float(v) for v in POINTS[i].split(",")[:2]]}
        for i in range(len(POINTS))
    ]
    coco = json.loads(studio.classes_json.read_text())
    (tmp_path / "points.json").write_text(
        json.dumps(coco | {"images": [image], "annotations": annotations})
    )
    words = ["--config-file", str(CONFIG_FILE), "--num-gpus", "0", "--prompt", "point"]
    words += ["--dataset", f"demo_points={tmp_path / 'points.json'}:{studio.images}"]
    words += ["--output", str(tmp_path / "labels.jsonl"), *OPTIONS]
    assert generate([*words, "MODEL.WEIGHTS", str(studio.weights)]) == 0
    (label,) = read_jsonl(tmp_path / "labels.jsonl")
    assert len(label["instances"]) >= 2
    assert record == label | {"file_name": studio.paths[0].as_posix()}


def test_without_points_it_finds_what_the_predictor_finds(studio, tmp_path, capsys):
    records = studio.run(tmp_path, "--confidence", "0.006", points=(), images=studio.paths[:2])
    cfg = small_config()
    cfg.MODEL.WEIGHTS = str(studio.weights)
    predictor = DefaultPredictor(cfg)
    assert sum(len(record["instances"]) for record in records) > 0
    for record, path in zip(records, studio.paths, strict=False):
        found = predictor(cv2.imread(str(path)))["instances"]
        found = found[found.scores >= 0.006]
        assert [IDS[i] for i in found.pred_classes.tolist()] == [
            instance["category_id"] for instance in record["instances"]
        ]
        for mask, instance in zip(found.pred_masks.numpy(), record["instances"], strict=True):
            np.testing.assert_array_equal(mask, decode(instance))
            assert "point" not in instance
    assert "prompt=none" in capsys.readouterr().out


def test_the_picture_shows_masks_and_points_only(studio, tmp_path):
    (record,) = studio.run(tmp_path, points=POINTS[:1])
    (instance,) = record["instances"]
    (path,) = tmp_path.glob("*.png")
    assert path.name == f"{studio.paths[0].stem}_overlay.png"
    picture, image = cv2.imread(str(path)), cv2.imread(str(studio.paths[0]))
    scale = picture.shape[0] // image.shape[0]
    plain = cv2.resize(image, picture.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    changed = (picture != plain).any(axis=2)
    mask = cv2.resize(decode(instance).astype(np.uint8), changed.shape[::-1], interpolation=0)
    assert changed[mask > 0].mean() > 0.95
    # Beside the mask's rim only the point with its label differs.
    near = cv2.dilate(mask, np.ones((4 * scale, 4 * scale), np.uint8))
    x, y = (int((float(v) + 0.5) * scale) for v in POINTS[0].split(",")[:2])
    near[y - 5 * scale : y + 10 * scale, max(x - 20 * scale, 0) : x + 20 * scale] = 1
    assert not changed[near == 0].any()
    assert changed[y, x]


def test_classes_by_index_by_list_and_by_names_file(studio, tmp_path):
    names = tmp_path / "names.json"
    names.write_text(json.dumps(list(CLASS_NAMES)))
    by_name = studio.run(tmp_path / "a", "--classes", ",".join(CLASS_NAMES))
    by_index = studio.run(
        tmp_path / "b", "--classes-json", names, points=("20,30,0", "61.5,40,crescent", "70,70,3")
    )
    assert by_name == by_index
    assert {i["category_id"] for r in by_name for i in r["instances"]} <= {1, 7, 4}


def test_the_refiner_redraws_the_masks(studio, tmp_path):
    torch.manual_seed(0)
    config = NetworkConfig(len(CLASS_NAMES), "resnet18", size=32)
    categories = tuple({"id": i, "name": str(i)} for i in sorted(IDS, reverse=True))
    path = tmp_path / "refiner.pth"
    save_atomically(network_content(config.build().state_dict(), config, categories), path)
    (prior,) = studio.run(tmp_path / "prior")
    (refined,) = studio.run(tmp_path / "refined", "--refiner", path)
    image = cv2.imread(str(studio.paths[0]))[:, :, ::-1]
    want = MaskRefiner.load(path).refine(
        image,
        np.array([decode(i) for i in prior["instances"]]),
        np.array([i["point"] for i in prior["instances"]]),
        np.array([17 - i["category_id"] for i in prior["instances"]]),
    )
    got = np.array([decode(i) for i in refined["instances"]])
    np.testing.assert_array_equal(got, want)
    assert [i["area"] for i in refined["instances"]] == want.sum(axis=(1, 2)).tolist()
    assert [i["score"] for i in refined["instances"]] == [i["score"] for i in prior["instances"]]
    (unprompted,) = studio.run(tmp_path / "none", "--refiner", path, "--confidence", "0", points=())
    assert unprompted["instances"]


def test_points_below_the_confidence_are_named(studio, tmp_path, capsys):
    (record,) = studio.run(tmp_path, "--confidence", "1.5")
    assert record["instances"] == []
    assert capsys.readouterr().out.count("no mask at") == len(POINTS)
    assert len(list(tmp_path.glob("*.png"))) == 1


def test_images_of_the_same_name_get_pictures_of_their_own(studio, tmp_path):
    twin = tmp_path / studio.paths[0].name
    twin.write_bytes(studio.paths[1].read_bytes())
    records = studio.run(tmp_path / "out", points=(), images=[studio.paths[0], twin])
    assert [r["image_id"] for r in records] == [1, 2]
    assert len(list((tmp_path / "out").glob("*_overlay.png"))) == 2


@pytest.mark.parametrize(
    ("points", "flags", "message"),
    [
        (("20,200,disc",), (), r"--point 20,200,disc: outside the image, which is \d+ x \d+"),
        (("20,-1,disc",), (), "outside"),
        (("20,20,circle",), (), "unknown class 'circle'.*0 to 6.*disc, square"),
        (("20,20,7",), (), "unknown class '7'"),
        (("20,disc",), (), "x,y,class"),
        (("nan,20,disc",), (), "outside"),
        (("20,20,a",), ("--classes", "a,b"), "does not fit .* 2 classes"),
        (POINTS, ("--classes", "a,a"), "all different"),
        (POINTS, ("--classes-json", CONFIG_FILE), "not a json file"),
        (POINTS, ("--refiner", "nowhere.pth"), "nowhere.pth: no such"),
    ],
)
def test_what_cannot_be_done_is_said(studio, tmp_path, capsys, points, flags, message):
    assert demo(studio.words(tmp_path / "out", *flags, points=points)) == 2
    error = capsys.readouterr().err
    assert "wsis demo: " in error and "Traceback" not in error
    assert re.search(message, error)
    assert not (tmp_path / "out" / "predictions.jsonl").exists()


def test_missing_weights_classes_and_images_are_said(studio, tmp_path, capsys):
    damaged = tmp_path / "damaged.jpg"
    damaged.write_text("no image")
    for options, message in [
        ({"weights": ""}, "MODEL.WEIGHTS"),
        ({"weights": tmp_path / "gone.pth"}, "gone.pth is not there"),
        ({"images": [damaged]}, "damaged.jpg"),
        ({"images": [tmp_path / "gone.jpg"]}, "gone.jpg' does not exist"),
    ]:
        assert demo(studio.words(tmp_path / "out", **options)) == 2
        assert message in capsys.readouterr().err
    words = studio.words(tmp_path / "out", "--classes", "")
    assert demo(words) == 2
    assert "--classes a,b,c" in capsys.readouterr().err


def test_points_need_one_image(studio, tmp_path, capsys):
    assert demo(studio.words(tmp_path, images=studio.paths[:2])) == 2
    assert "--point is for one image" in capsys.readouterr().err
