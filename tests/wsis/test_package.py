"""Published models: what is written can be loaded wherever weights or a config are asked for."""

import json
import os
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from maskrefinenet import MaskRefiner
from maskrefinenet.checkpoint import NetworkConfig, load_checkpoint, network_content
from tests.wsis.small_network import (
    CLASS_NAMES,
    CONFIG_FILE,
    OPTIONS,
    make_images,
    make_weights,
    read_jsonl,
)
from weaklabels.model_folder import CARD, read_card
from wsis.cli.main import program
from wsis.config import load_config

package = partial(program, "package")
CATEGORIES = ({"id": 7, "name": "disc"}, {"id": 9, "name": "ring"})


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Weights of the small network, and a few images with their annotation file."""
    folder = tmp_path_factory.mktemp("package")
    make_weights(folder / "weights.pth")
    make_images(folder / "shapes")
    return folder


@pytest.fixture(scope="module")
def published(lab):
    words = ["--config-file", str(CONFIG_FILE), "--weights", str(lab / "weights.pth")]
    words += ["--license", "CC-BY-4.0", "--description", "a test", "--output", str(lab / "model")]
    words += ["--annotations", str(lab / "shapes/annotations/instances_train.json")]
    assert package([*words, *OPTIONS]) == 0
    return lab / "model"


@pytest.fixture
def refiner_checkpoint(tmp_path):
    config = NetworkConfig(len(CATEGORIES), "resnet18", size=32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = config.build().state_dict()
    path = tmp_path / "last.pth"
    torch.save({**network_content(state, config, CATEGORIES), "optimizer": {}}, path)
    return path


def test_the_folder_holds_weights_config_and_a_card(lab, published):
    assert sorted(os.listdir(published)) == ["config.json", "model.safetensors", "package.json"]
    want = torch.load(lab / "weights.pth", weights_only=True)["model"]
    got = load_file(published / "model.safetensors")
    assert got.keys() == want.keys()
    assert all(torch.equal(got[key], want[key]) for key in want)
    card = read_card(published)
    assert (card.kind, card.license, card.description) == ("SOLOv2", "CC-BY-4.0", "a test")
    assert [category["name"] for category in card.categories] == list(CLASS_NAMES)
    assert card.tensors == len(want)
    assert str(lab) not in (published / "config.json").read_text()


def test_the_config_is_the_one_that_made_it(published):
    want = load_config(str(CONFIG_FILE), OPTIONS)
    got = load_config(str(published), num_gpus=0)
    assert got.MODEL.WEIGHTS == str(published)
    for cfg in (want, got):
        cfg.merge_from_list(["MODEL.WEIGHTS", "", "DATASETS.TRAIN", (), "DATASETS.TEST", ()])
        cfg.merge_from_list(["OUTPUT_DIR", "", "MODEL.DEVICE", "cpu"])
    assert got.dump() == want.dump()


@pytest.mark.parametrize("file", ["", "model.safetensors"])
def test_the_checkpointer_loads_folder_and_file(lab, published, file):
    model = build_model(load_config(str(published), num_gpus=0))
    checkpointer = DetectionCheckpointer(model)
    checkpointer.load(str(published / file))
    assert checkpointer.load_report.is_complete
    want = torch.load(lab / "weights.pth", weights_only=True)["model"]
    assert all(torch.equal(value, want[key]) for key, value in model.state_dict().items())


def test_programs_give_the_same_with_the_folder(lab, published, tmp_path):
    """demo with the folder alone, and generate with its weights, as with the checkpoint."""
    image = next((lab / "shapes" / "train").iterdir())
    annotations = lab / "shapes" / "annotations" / "instances_train.json"
    own = ["--config-file", str(CONFIG_FILE), "--weights", str(lab / "weights.pth")]
    own += ["--classes", ",".join(CLASS_NAMES)]
    point = ["--input", str(image), "--point", "40,40,ring", "--num-gpus", "0"]
    for name, words in (("a", own), ("b", ["--config-file", str(published)])):
        assert program("demo", [*words, *point, "--output", str(tmp_path / name), *OPTIONS]) == 0
    assert read_jsonl(tmp_path / "a/predictions.jsonl") == read_jsonl(
        tmp_path / "b/predictions.jsonl"
    )
    common = ["--num-gpus", "0", "--config-file", str(CONFIG_FILE)]
    common += ["--dataset", f"package_shapes={annotations}:{lab / 'shapes' / 'train'}"]
    for name, weights in (("a", lab / "weights.pth"), ("b", published)):
        words = ["--weights", str(weights), "--output", str(tmp_path / f"{name}.jsonl")]
        assert program("generate", [*common, *words]) == 0
    assert read_jsonl(tmp_path / "a.jsonl") == read_jsonl(tmp_path / "b.jsonl")


def test_a_refiner_is_published_and_loaded(refiner_checkpoint, tmp_path):
    words = ["--weights", str(refiner_checkpoint), "--license", "Apache-2.0"]
    assert package([*words, "--output", str(tmp_path / "refiner")]) == 0
    want, got = load_checkpoint(refiner_checkpoint), load_checkpoint(tmp_path / "refiner")
    assert got.config == want.config and got.categories == want.categories
    assert read_card(tmp_path / "refiner").kind == "MaskRefineNet"
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)
    masks, points = rng.random((2, 40, 50)) > 0.5, np.array([[10.0, 10], [30, 20]])
    both = [MaskRefiner.load(path) for path in (refiner_checkpoint, tmp_path / "refiner")]
    first, second = (refiner.refine(image, masks, points, np.array([0, 1])) for refiner in both)
    assert both[1].category_ids == (7, 9) and np.array_equal(first, second)


def test_other_weights_and_places_are_refused(lab, published, refiner_checkpoint, tmp_path, capsys):
    words = ["--config-file", str(CONFIG_FILE), "--weights", str(lab / "weights.pth")]
    out = ["--output", str(tmp_path / "out")]
    assert package([*words, "--license", "CC0-1.0", *out]) == 2  # no classes are known
    assert "COCO has 80 classes, the network 7" in capsys.readouterr().err
    labels = ["--annotations", str(lab / "shapes/annotations/instances_train.json")]
    assert package([*words, *labels, "--license", "?", *out]) == 2
    assert "expected an SPDX expression" in capsys.readouterr().err
    assert package([*words, *labels, "--license", "MIT", "--output", str(published)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert package(["--weights", str(lab / "weights.pth"), "--license", "MIT", *out]) == 2
    assert "model_state" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_of_another_kind_is_no_refiner(published):
    with pytest.raises(ValueError, match="its card says SOLOv2, so it is no MaskRefineNet"):
        load_checkpoint(published)


def test_broken_folders_are_named(published, tmp_path):
    folder = tmp_path / "broken"
    folder.mkdir()
    content = json.loads((published / CARD).read_text())
    (folder / CARD).write_text(json.dumps(content))
    (folder / "model.safetensors").write_bytes((published / "model.safetensors").read_bytes()[:999])
    model = build_model(load_config(str(published), num_gpus=0))
    with pytest.raises(ValueError, match="broken/model.safetensors is not a complete"):
        DetectionCheckpointer(model).load(str(folder))
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="broken/model.safetensors is not there"):
        DetectionCheckpointer(model).load(str(folder))
    for change, message in (
        ({"version": 2}, "version 1"),
        ({"license": ""}, "SPDX"),
        ({"categories": [{"id": 1}]}, "expected an id and a name"),
        ({"categories": 3}, "package.json: "),
    ):
        (folder / CARD).write_text(json.dumps(content | change))
        with pytest.raises(ValueError, match=message):
            read_card(folder)
    del content["license"]
    (folder / CARD).write_text(json.dumps(content))
    with pytest.raises(ValueError, match="lacks license"):
        read_card(folder)
