import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as mask_api

from maskrefinenet import MaskRefineNet, MaskRefiner
from maskrefinenet.checkpoint import NetworkConfig, load_checkpoint, network_content
from maskrefinenet.crops import CropBox
from maskrefinenet.pipeline import GROUP_IMAGES, GROUP_INSTANCES, make_groups
from maskrefinenet.predictions import read_predictions
from maskrefinenet.refiner import paste
from tests.golden.inputs import fill_state_dict
from weaklabels.coco import load_annotations
from weaklabels.evaluate import records_ap
from weaklabels.masks import decode_mask, encode_mask, mask_fields

ROOT = Path(__file__).resolve().parents[2]
CATEGORIES = ({"id": 1, "name": "a"}, {"id": 13, "name": "b"})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """Seeded weights that find something in every crop."""
    model = fill_state_dict(MaskRefineNet(2, encoder="resnet18"))
    path = tmp_path_factory.mktemp("model") / "last.pth"
    config = NetworkConfig(2, encoder="resnet18", size=64)
    torch.save(network_content(model.state_dict(), config, CATEGORIES), path)
    return path


def test_refinement_equals_the_reference(reference_network, golden, golden_folder, tinycoco):
    """Seeded weights at 128 x 128; the third instance keeps its prior. Boxes there are short."""
    annotations = load_annotations(tinycoco / "instances_train2017_tiny_w.json")
    (record,) = read_predictions(tinycoco / "pred_weak.pth", annotations)
    image, rows = golden["decoded_632"], record["instances"]
    refiner = MaskRefiner(reference_network, size=128)
    masks = np.stack([decode_mask(row["segmentation"], *image.shape[:2]) for row in rows])
    points = np.array([row["point"] for row in rows])
    classes = np.array([annotations.category_ids.index(row["category_id"]) for row in rows])
    refined = refiner.refine(image, masks, points, classes)
    assert refined.dtype == bool and refined.shape == masks.shape
    recorded = json.loads((golden_folder / "mrn_refined.json").read_text())
    for mask, row in zip(refined, recorded, strict=True):
        want = mask_api.decode(row["segmentation"]).astype(bool)
        assert (mask & want).sum() / (mask | want).sum() > 0.99
        x, y, w, h = row["bbox"]  # of the reference: one pixel short
        assert mask_fields(encode_mask(mask))["bbox"] == [x, y, w + 1, h + 1]


def test_empty_priors_and_empty_results(golden, checkpoint):
    """An empty prior is refined around its point; an empty result keeps the prior."""
    image = golden["decoded_632"]
    refiner = MaskRefiner.load(checkpoint)
    empty = np.zeros((1, *image.shape[:2]), dtype=bool)
    points, classes = np.array([[70.0, 50.0]]), np.array([0])
    assert refiner.refine(image, empty, points, classes).any()
    assert refiner.refine(image, empty[:0], points[:0], classes[:0]).shape == (0, 100, 140)
    prior = empty.copy()
    prior[0, 40:60, 50:90] = True
    refiner.model.head.bias.data[:] = torch.tensor([9.0, -9.0])
    assert (refiner.refine(image, prior, points, classes) == prior).all()


def test_groups_depend_on_the_records_alone():
    records = [{"instances": [0] * n} for n in (1, 1, 70, 3, *[0] * 20, 63, 1, 5)]
    sizes = [len(group) for group in make_groups(records)]
    assert sizes == [3, GROUP_IMAGES, 7, 1] and GROUP_INSTANCES == 64


def test_paste_is_none_without_foreground():
    assert paste(np.full((8, 8), 0.5, np.float32), CropBox(1, 1, 3, 3), (5, 5)) is None
    mask = paste(np.ones((8, 8), np.float32), CropBox(1, 1, 3, 4), (6, 5))
    assert mask.sum() == 12 and mask[1:5, 1:4].all()


def test_wrong_arguments_are_named(checkpoint, tmp_path, golden):
    refiner = MaskRefiner.load(checkpoint)
    image, mask = golden["decoded_632"], np.ones((1, 100, 140), dtype=bool)
    with pytest.raises(ValueError, match="expected .H, W, 3. uint8"):
        refiner.refine(image[..., 0], mask, np.zeros((1, 2)), np.zeros(1))
    with pytest.raises(ValueError, match="1 masks need points"):
        refiner.refine(image, mask, np.zeros((2, 2)), np.zeros(1))
    with pytest.raises(ValueError, match="class 2; the network has 2"):
        refiner.refine(image, mask, np.zeros((1, 2)), np.array([2]))
    with pytest.raises(FileNotFoundError, match="nowhere.pth"):
        load_checkpoint(tmp_path / "nowhere.pth")
    torch.save({"model": {}}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="other.pth: expected a MaskRefineNet checkpoint"):
        load_checkpoint(tmp_path / "other.pth")


def test_a_bare_checkpoint_tells_its_architecture(tmp_path):
    """The reference saves no more than its weights."""
    for encoder, agnostic in (("resnet18", False), ("resnet50", True)):
        model = MaskRefineNet(5, encoder=encoder, class_agnostic=agnostic)
        path = tmp_path / "bare.pth"
        state = {f"module.{key}": value for key, value in model.state_dict().items()}
        torch.save({"model_state": state, "epoch": 1, "last_itr": 2, "best_AP": 3.0}, path)
        loaded = load_checkpoint(path)
        assert loaded.config.encoder == encoder and loaded.config.class_agnostic == agnostic
        assert loaded.config.num_classes == (1 if agnostic else 5) and loaded.categories is None
        loaded.build()


@pytest.mark.parametrize("module", ["numpy._core.multiarray", "numpy.core.multiarray"])
@pytest.mark.parametrize("kind", [np.float64, np.float32, np.int64])
def test_numpy_figures_in_a_checkpoint_are_read(tmp_path, module, kind):
    """The reference stores `best_AP` as numpy gave it, under the name of that numpy's module."""
    content = {"model_state": MaskRefineNet(2, encoder="resnet18").state_dict(), "best_AP": kind(3)}
    path = tmp_path / "released.pth"
    torch.save(content, path, _use_new_zipfile_serialization=False)  # pickled as it stands
    here = kind(3).__reduce__()[0].__module__.encode()
    written = path.read_bytes()
    assert here + b"\nscalar" in written
    path.write_bytes(written.replace(here + b"\nscalar", module.encode() + b"\nscalar"))
    assert load_checkpoint(path).content["best_AP"] == 3


def test_checkpoints_of_something_else_are_named(tmp_path):
    path = tmp_path / "other.pth"
    for content in ({"model_state": 3}, {"model_state": [1]}, {"model_state": {}}, [1]):
        torch.save(content, path)
        with pytest.raises(ValueError, match="other.pth: .*MaskRefineNet"):
            load_checkpoint(path)


def test_evaluation_of_the_truth_is_perfect(tinycoco):
    annotations = load_annotations(tinycoco / "instances_train2017_tiny_w.json")
    rows = [
        {"category_id": row["category_id"], "segmentation": encode_mask(mask)}
        for row in annotations.instances[632]
        for mask in [decode_mask(row["segmentation"], 100, 140)]
    ]
    records = [{"image_id": 632, "instances": rows}]
    assert records_ap(records, annotations)["AP"] == pytest.approx(100)
    assert records_ap([{"image_id": 632, "instances": []}], annotations)["AP"] == 0
    del annotations.instances[632][0]["segmentation"]
    with pytest.raises(ValueError, match="has no mask; evaluation needs masks"):
        records_ap(records, annotations)
