"""`wsis train` with WeakRCNN: tags and proposals in, boxes out; resume, refusals, schedules."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from tests.wsis.test_schedules import value_of
from weaklabels.shapes.dataset import make_shapes
from weaklabels.tags import TaggedImage, Tags, write_tags
from weaksam.wsod.weak_rcnn import WeakRCNN
from wsis.cli.main import program
from wsis.config import load_config

main = partial(program, "train")
FOLDER = Path(__file__).parents[2] / "configs" / "WeakSAM"
CONFIG = FOLDER / "voc07_mist.yaml"
GOLDEN = Path(__file__).parents[1] / "golden" / "weaksam_schedules.json"
SCHEDULES = json.loads(GOLDEN.read_text(encoding="utf-8"))
NAMES = ("weak_test_train", "weak_test_val")
SMALL = {
    "MODEL.VGG.WIDTH": 0.0625,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 16,
    "MODEL.WSOD.MIN_BOX_SIDE": 4,
    "INPUT.MIN_SIZE_TRAIN": (64,),
    "INPUT.MIN_SIZE_TEST": 64,
    "TEST.AUG.MIN_SIZES": (64, 80),
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.STEPS": (2,),
    "SOLVER.MAX_ITER": 4,
    "SOLVER.CHECKPOINT_PERIOD": 2,
    "SOLVER.BASE_LR": 1e-3,
    "DATALOADER.NUM_WORKERS": 0,
}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with scenes, tags.json of the training images, and proposals of both splits."""
    folder = tmp_path_factory.mktemp("shapes")
    make_shapes(folder, train=6, val=2, size=64, seed=0)
    for split in ("train", "val"):
        content = json.loads((folder / "annotations" / f"instances_{split}.json").read_text())
        write_proposals(folder / f"{split}.npz", content["images"])
    content = json.loads((folder / "annotations" / "instances_train.json").read_text())
    write_tags(folder / "tags.json", tags_of(content))
    yield folder
    for name in NAMES:
        for catalog in (DatasetCatalog, MetadataCatalog):
            if name in catalog.list():
                catalog.remove(name)


def tags_of(content):
    classes = {image["id"]: set() for image in content["images"]}
    for annotation in content["annotations"]:
        classes[annotation["image_id"]].add(annotation["category_id"])
    classes[content["images"][0]["id"]] = set()  # nothing is known of the first one
    images = [
        TaggedImage(
            i["id"], i["file_name"], i["height"], i["width"], tuple(sorted(classes[i["id"]]))
        )
        for i in content["images"]
    ]
    return Tags(tuple(images), tuple((c["id"], c["name"]) for c in content["categories"]))


def write_proposals(path, images):
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 30, (len(images), 20, 2))
    boxes = np.concatenate([low, low + rng.uniform(8, 30, low.shape)], axis=2)
    ids = np.repeat([image["id"] for image in images], 20)
    np.savez(path, image_ids=ids, boxes=boxes.reshape(-1, 4), scores=np.ones(len(ids)))


def run(data, output, *flags, **changes):
    annotations = data / "annotations" / "instances_val.json"
    values = SMALL | {
        "DATASETS.TRAIN": (f"{NAMES[0]}={data}/tags.json:{data}/train",),
        "DATASETS.TEST": (f"{NAMES[1]}={annotations}:{data}/val",),
        "DATASETS.PROPOSAL_FILES_TRAIN": (str(data / "train.npz"),),
        "DATASETS.PROPOSAL_FILES_TEST": (str(data / "val.npz"),),
        "OUTPUT_DIR": str(output),
    }
    values |= {key.replace("__", "."): value for key, value in changes.items()}
    words = [word for name, value in values.items() for word in (name, str(value))]
    return main(["--config-file", str(CONFIG), "--num-gpus", "0", *flags, *words])


def final_weights(output):
    return torch.load(output / "model_final.pth", weights_only=True)


def test_training_averaging_and_resuming(data, tmp_path):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert run(data, whole) == 0
    log = (whole / "log.txt").read_text()
    assert "NUM_CLASSES set to 7 (it was 20)" in log
    assert "6 images with" in log and "1 without tags, 0 without proposals, not trained on" in log
    for folder, suffix in (("inference", ""), ("inference_TTA", "_TTA")):
        results = json.loads((whole / folder / "summary.json").read_text())["results"]
        assert results.keys() == {f"bbox{suffix}"}
    lines = [json.loads(line) for line in (whole / "metrics.json").read_text().splitlines()]
    assert {"loss_image", "loss_refine3", "loss_box1", "lr_adversary"} <= lines[0].keys()

    assert run(data, resumed, DATASETS__TEST=()) == 0
    for name in ("model_final.pth", "model_0000003.pth"):  # as if killed after two iterations
        (resumed / name).unlink()
    (resumed / "last_checkpoint").write_text("model_0000001.pth")
    assert run(data, resumed, "--resume", DATASETS__TEST=()) == 0
    one, other = final_weights(whole), final_weights(resumed)
    assert one["iteration"] == other["iteration"] == 3
    assert any("drop_block" in name for name in one["model"])
    assert all(torch.equal(value, other["model"][name]) for name, value in one["model"].items())


def break_second_pass(monkeypatch, number: int, what: str) -> None:
    """The adversary's loss or gradients of one iteration are not finite; two passes each."""
    forward, calls = WeakRCNN.forward, []

    def broken(model, batch):
        calls.append(0)
        losses = forward(model, batch)
        if len(calls) != 2 * number + 2:
            return losses
        if what == "loss":
            return losses | {"loss_image": losses["loss_image"] * float("nan")}
        mixed = losses["loss_image"] + 0 * sum(p.sum() for p in model.adversary.parameters())
        mixed.register_hook(lambda gradient: gradient * float("inf"))
        return losses | {"loss_image": mixed}

    monkeypatch.setattr(WeakRCNN, "forward", broken)


@pytest.mark.parametrize("what", ["loss", "gradients"])
def test_a_second_pass_that_is_not_finite_changes_nothing(
    data, tmp_path, monkeypatch, capsys, what
):
    plain = {"DATASETS__TEST": (), "SOLVER__CHECKPOINT_PERIOD": 1}
    assert run(data, tmp_path / "whole", **plain) == 0
    break_second_pass(monkeypatch, 2, what)
    assert run(data, tmp_path / "broken", **plain) == 2
    message = capsys.readouterr().err
    assert f"of the adversary, the {what.removesuffix('s')}" in message
    assert "iteration 2" in message and ".jpg" in message
    monkeypatch.undo()
    folder = tmp_path / "broken" / "nonfinite_0000002"
    assert len(json.loads((folder / "batch.json").read_text())["images"]) == 2
    assert run(data, folder, "--resume", **plain) == 0  # repeats the step, now without the fault
    one, other = final_weights(tmp_path / "whole"), final_weights(folder)
    assert all(torch.equal(value, other["model"][name]) for name, value in one["model"].items())


def test_a_second_pass_may_be_skipped(data, tmp_path, monkeypatch):
    break_second_pass(monkeypatch, 2, "gradients")
    changes = {"DATASETS__TEST": (), "SOLVER__CHECKPOINT_PERIOD": 1, "SOLVER__SKIP_NONFINITE": 1}
    assert run(data, tmp_path, **changes) == 0
    before, after, final = (
        torch.load(tmp_path / f"model_{name}.pth", weights_only=True)
        for name in ("0000001", "0000002", "final")
    )
    assert all(torch.equal(value, after["model"][name]) for name, value in before["model"].items())
    assert all(value.isfinite().all() for value in final["model"].values())
    rates = [state["trainer"]["_trainer"]["adversary_schedule"] for state in (before, after)]
    assert [rate["last_epoch"] for rate in rates] == [2, 3]


def test_annotations_are_refused_where_tags_are_learned_from(data, tmp_path, capsys):
    file = data / "annotations" / "instances_train.json"
    changes = {"DATASETS__TRAIN": (f"weak_test_boxes={file}:{data}/train",)}
    assert run(data, tmp_path, **changes) == 2
    assert "has 'annotations', so it is no tag file" in capsys.readouterr().err


def test_a_tag_file_is_refused_by_other_networks(data, tmp_path, capsys):
    changes = {
        "MODEL__META_ARCHITECTURE": "GeneralizedRCNN",
        "MODEL__ROI_HEADS__NAME": "StandardROIHeads",
        "TEST__AUG__ENABLED": False,
        "DATASETS__TRAIN": (f"weak_test_refused={data}/tags.json:{data}/train",),
    }
    assert run(data, tmp_path, **changes) == 2
    assert "a tag file says what an image shows and not where" in capsys.readouterr().err


def test_proposals_of_another_dataset_are_refused(data, tmp_path, capsys):
    np.savez(tmp_path / "other.npz", image_ids=["x"], boxes=[[0, 0, 9, 9]], scores=[1.0])
    changes = {"DATASETS__PROPOSAL_FILES_TRAIN": (str(tmp_path / "other.npz"),)}
    assert run(data, tmp_path / "out", **changes) == 2
    assert "has boxes for none of 6 images" in capsys.readouterr().err


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_are_the_published_ones(name):
    cfg = load_config(str(FOLDER / f"{name}.yaml"), num_gpus=0)
    assert {key: value_of(cfg, key) for key in SCHEDULES[name]} == SCHEDULES[name]
    assert set(cfg.DATASETS.TRAIN) | set(cfg.DATASETS.TEST) <= set(DatasetCatalog)
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 8  # of 4,096, to save time
    model = build_model(cfg)
    assert (model.adversary is not None) == cfg.MODEL.WSOD.DROP_BLOCK.ENABLED
