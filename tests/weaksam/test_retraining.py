"""From a weak detector's boxes to a detector and a segmenter, by the published configs, small."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.inline import register_inline_datasets
from detectron2.engine import default_setup
from tests.weaksam.test_retraining_configs import config_of
from weaklabels.shapes.dataset import make_shapes
from wsis.cli.main import main
from wsis.training import Trainer, TrainingSettings, adapt_num_classes

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
SIDE = 64
NAMES = {"boxes": "retraining_boxes", "masks": "retraining_masks", "val": "retraining_val"}
SMALL = {
    "MODEL.DEVICE": "cpu",
    "MODEL.WEIGHTS": "",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.RESNETS.DEPTH": 18,
    "MODEL.RESNETS.NORM": "BN",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 8,
    "MODEL.FPN.OUT_CHANNELS": 16,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 16,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 8,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 50,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 50,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
    "MODEL.INSTANCE_DROP.OPERATE_ITER": 1,
    "INPUT.MIN_SIZE_TRAIN": (SIDE,),
    "INPUT.MIN_SIZE_TEST": SIDE,
    "TEST.AUG.MIN_SIZES": (SIDE,),
    "TEST.DETECTIONS_PER_IMAGE": 10,
    "TEST.EVAL_PERIOD": 0,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.STEPS": (),
    "SOLVER.MAX_ITER": 2,
    "DATALOADER.NUM_WORKERS": 0,
    "SEED": 1,
}


def noisy_detections(content, rng):
    """Records of a weak detector: jittered boxes, small parts of them, and wrong classes."""
    names = {image["id"]: image for image in content["images"]}
    records = {number: [] for number in names}
    classes = [c["id"] for c in content["categories"]]
    for entry in content["annotations"]:
        x, y, w, h = entry["bbox"]
        image = names[entry["image_id"]]
        boxes = [(0.9, (x, y, w, h)), (0.5, (x + w / 4, y + h / 4, w / 2, h / 2))]
        boxes.append((0.2, (0, 0, image["width"], image["height"])))
        for score, box in boxes:
            own = {"score": score * rng.uniform(0.8, 1), "bbox": [float(v) for v in box]}
            for category in (entry["category_id"], int(rng.choice(classes))):
                records[image["id"]].append(own | {"category_id": category})
    return [{"image_id": number, "instances": own} for number, own in records.items()]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Shapes; pseudo boxes and masks of the training images, made by the commands."""
    folder = tmp_path_factory.mktemp("retraining")
    make_shapes(folder, train=6, val=2, size=SIDE, seed=0)
    content = json.loads((folder / "annotations" / "instances_train.json").read_text())
    shown = {image["id"]: set() for image in content["images"]}
    for entry in content["annotations"]:
        shown[entry["image_id"]].add(entry["category_id"])
    images = [image | {"category_ids": sorted(shown[image["id"]])} for image in content["images"]]
    tags = {"images": images, "categories": content["categories"]}
    (folder / "tags.json").write_text(json.dumps(tags))
    lines = noisy_detections(content, np.random.default_rng(0))
    records = folder / "train.jsonl"
    records.write_text("".join(json.dumps(line) + "\n" for line in lines))
    choose = ["pseudo-boxes", "--detections", records, "--tags", folder / "tags.json"]
    segment = ["box-masks", "--boxes", folder / "boxes.json", "--image-root", folder / "train"]
    segment += ["--segmenter", "tiny", "--num-gpus", "0"]
    for words, output in ((choose, "boxes.json"), (segment, "masks.json")):
        assert main([str(word) for word in (*words, "-o", folder / output)]) == 0
    yield folder
    for name in NAMES.values():
        for catalog in (DatasetCatalog, MetadataCatalog):
            if name in catalog.list():
                catalog.remove(name)


def train(name: str, data: Path, output: Path, resume=False, **changes):
    """Train a published config with small overrides; its trainer, done."""
    cfg = config_of(name)
    kind = "masks" if "mask" in name else "boxes"
    values = SMALL | {
        "DATASETS.TRAIN": (f"{NAMES[kind]}={data}/{kind}.json:{data}/train",),
        "DATASETS.TEST": (f"{NAMES['val']}={data}/annotations/instances_val.json:{data}/val",),
        "OUTPUT_DIR": str(output),
    }
    values |= {key.replace("__", "."): value for key, value in changes.items()}
    cfg.merge_from_list([item for pair in values.items() for item in pair])
    for split in ("TRAIN", "TEST"):
        cfg.DATASETS[split] = tuple(register_inline_datasets(cfg.DATASETS[split]))
    adapt_num_classes(cfg, eval_only=False)
    default_setup(cfg, TrainingSettings())
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


def figures(output: Path, folder="inference"):
    return json.loads((output / folder / "summary.json").read_text())["results"]


@pytest.mark.parametrize("name", ["voc07_faster_rcnn", "voc12_faster_rcnn", "coco14_faster_rcnn"])
def test_detectors_train_on_pseudo_boxes_and_are_evaluated(name, data, tmp_path):
    trainer = train(name, data, tmp_path)
    assert "AP50" in figures(tmp_path)["bbox"]
    assert "AP50" in figures(tmp_path, "inference_TTA")["bbox_TTA"]
    drops = trainer.model.roi_heads.box_predictor.drop is not None
    assert drops == (name != "voc12_faster_rcnn")  # off as published
    lines = (tmp_path / "metrics.json").read_text().splitlines()
    assert drops == any("instance_drop/cls" in line for line in lines)


@pytest.mark.parametrize("name", ["voc12_mask_rcnn", "coco_mask_rcnn"])
def test_segmenters_train_on_masks_of_boxes_and_are_evaluated(name, data, tmp_path):
    trainer = train(name, data, tmp_path)
    assert "AP75" in figures(tmp_path)["segm"]
    assert trainer.storage.latest()["loss_mask"][0] > 0


def test_a_resumed_detector_drops_and_ends_as_an_uninterrupted_one(data, tmp_path):
    changes = {
        "MODEL__INSTANCE_DROP__THRESH_CLS": 0.5,
        "MODEL__INSTANCE_DROP__THRESH_REG": 0.1,
        "MODEL__INSTANCE_DROP__OPERATE_ITER": 1,
        "SOLVER__CHECKPOINT_PERIOD": 2,
        "TEST__AUG__ENABLED": False,
        "DATASETS__TEST": (),
    }
    whole = train("voc07_faster_rcnn", data, tmp_path / "a", SOLVER__MAX_ITER=4, **changes)
    assert whole.storage.latest()["instance_drop/cls"][0] > 0
    # The first half of the same schedule, then a new process' trainer.
    stopped = tmp_path / "b"
    stopped.mkdir()
    for file in ("model_0000001.pth", "last_checkpoint"):
        (stopped / file).write_bytes((tmp_path / "a" / file).read_bytes())
    (stopped / "last_checkpoint").write_text("model_0000001.pth")
    resumed = train("voc07_faster_rcnn", data, stopped, resume=True, SOLVER__MAX_ITER=4, **changes)
    for (name, a), b in zip(
        whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name
