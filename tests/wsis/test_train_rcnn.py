"""tools/train_net.py with a small Mask R-CNN on generated shapes: training, evaluation, TTA."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from detectron2.data import DatasetCatalog, MetadataCatalog
from weaklabels.shapes.dataset import make_shapes
from wsis.cli.main import program

main = partial(program, "train")
CONFIG = Path(__file__).parents[2] / "configs" / "Quickstart" / "mask_rcnn_shapes.yaml"
NAMES = ("rcnn_test_train", "rcnn_test_val")
SMALL = {
    "MODEL.RESNETS.NORM": "BN",  # 8 channels are too few for groups
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 8,
    "MODEL.FPN.OUT_CHANNELS": 32,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 16,
    "MODEL.ROI_HEADS.NUM_CLASSES": 80,  # to be set from the data
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
    "TEST.DETECTIONS_PER_IMAGE": 10,
    "SOLVER.IMS_PER_BATCH": 2,
    "SEED": 1,
}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    make_shapes(folder, train=4, val=2, size=64, seed=0)
    yield folder
    for name in NAMES:
        for catalog in (DatasetCatalog, MetadataCatalog):
            if name in catalog.list():
                catalog.remove(name)


def run(shapes, output, *flags, **changes):
    datasets = [
        f"{name}={shapes}/annotations/instances_{split}.json:{shapes}/{split}"
        for name, split in zip(NAMES, ("train", "val"), strict=True)
    ]
    values = SMALL | {"DATASETS.TRAIN": (datasets[0],), "DATASETS.TEST": (datasets[1],)}
    values |= {"OUTPUT_DIR": str(output)} | {k.replace("__", "."): v for k, v in changes.items()}
    words = [word for name, value in values.items() for word in (name, str(value))]
    return main(["--config-file", str(CONFIG), "--num-gpus", "0", *flags, *words])


def test_a_mask_rcnn_trains_and_is_evaluated_with_and_without_augmentation(shapes, tmp_path):
    augmentation = {"TEST__AUG__ENABLED": True, "TEST__AUG__MIN_SIZES": (64, 96)}
    assert run(shapes, tmp_path, SOLVER__MAX_ITER=2, **augmentation) == 0
    plain, augmented = (
        json.loads((tmp_path / folder / "summary.json").read_text())["results"]
        for folder in ("inference", "inference_TTA")
    )
    assert plain.keys() == {"bbox", "segm"} and augmented.keys() == {"bbox_TTA", "segm_TTA"}
    assert "AP50" in augmented["segm_TTA"]
    assert "NUM_CLASSES set to 7 (it was 80)" in (tmp_path / "log.txt").read_text()
    lines = (tmp_path / "metrics.json").read_text().splitlines()
    metrics = {key: value for line in lines for key, value in json.loads(line).items()}
    assert {"loss_mask", "loss_rpn_cls", "bbox/AP", "bbox_TTA/AP"} <= metrics.keys()
    weights = tmp_path / "model_final.pth"
    again = tmp_path / "again"
    assert run(shapes, again, "--eval-only", MODEL__WEIGHTS=weights) == 0
    assert json.loads((again / "inference" / "summary.json").read_text())["results"] == plain


def test_training_on_precomputed_proposals(shapes, tmp_path):
    content = json.loads((shapes / "annotations" / "instances_train.json").read_text())
    rows = [(a["image_id"], a["bbox"]) for a in content["annotations"]]
    np.savez(
        tmp_path / "train.npz",
        image_ids=np.array([image_id for image_id, _ in rows]),
        boxes=np.array([box for _, box in rows]),
        scores=np.ones(len(rows)),
        bbox_mode=1,
    )
    changes = {
        "MODEL__PROPOSAL_GENERATOR__NAME": "PrecomputedProposals",
        "MODEL__LOAD_PROPOSALS": True,
        "DATASETS__PROPOSAL_FILES_TRAIN": (str(tmp_path / "train.npz"),),
        "DATASETS__TEST": (),
        "SOLVER__MAX_ITER": 1,
    }
    assert run(shapes, tmp_path / "out", **changes) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text().splitlines()[0])
    assert "loss_cls" in metrics and "loss_rpn_cls" not in metrics


def test_augmentation_is_refused_for_other_networks(shapes, tmp_path, capsys):
    changes = {"MODEL__META_ARCHITECTURE": "SOLOv2", "TEST__AUG__ENABLED": True}
    assert run(shapes, tmp_path, **changes) == 2
    assert "SOLOv2 has no test-time augmentation" in capsys.readouterr().err
