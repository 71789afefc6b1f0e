"""The configs of detectors and segmenters that learn from pseudo labels: schedules and networks."""

import json
from pathlib import Path

import pytest
import torch

from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads import StandardROIHeads
from weaksam.config import add_weaksam_config
from weaksam.roi_drop import InstanceDropOutputLayers

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs" / "WeakSAM"
PUBLISHED = json.loads((ROOT / "tests" / "golden" / "weaksam_retraining.json").read_text())
NAMES = sorted(PUBLISHED["configs"])


def config_of(name):
    cfg = get_cfg()
    add_weaksam_config(cfg)
    cfg.merge_from_file(str(CONFIGS / f"{name}.yaml"))
    return cfg


def value_of(cfg, key):
    for name in key.split("."):
        cfg = cfg[name]
    return json.loads(json.dumps(cfg))


def test_every_config_is_in_the_table():
    files = {path.stem for path in CONFIGS.glob("*_rcnn.yaml") if not path.stem.startswith("Base")}
    assert files == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_schedule_is_the_published_one(name, caplog):
    cfg, published = config_of(name), PUBLISHED["configs"][name]
    assert not caplog.messages  # no key is dropped
    assert {key: value_of(cfg, key) for key in published} == published
    for dataset in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        assert dataset in DatasetCatalog


@pytest.mark.parametrize("name", NAMES)
def test_config_builds_its_network(name):
    cfg = config_of(name)
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        heads = build_model(cfg).roi_heads
    assert type(heads) is StandardROIHeads and heads.mask_on == ("mask" in name)
    assert type(heads.box_predictor) is InstanceDropOutputLayers
    assert (heads.box_predictor.drop is not None) == cfg.MODEL.INSTANCE_DROP.ISON
    classes = 80 if name.startswith("coco") else 20
    assert heads.box_predictor.cls_score.out_features == classes + 1


def test_pseudo_labels_lie_where_the_reference_has_them():
    files = {
        "voc_2012_train_aug_cocostyle_wsss": "VOC2012/voc_2012_train_aug_cocostyle_wsss.json",
        "voc_2012_val_cocostyle": "VOC2012/voc_2012_val_cocostyle.json",
        "coco_2017_train_wsss": "coco/annotations/instances_train2017_wsss.json",
        "instances_train2017_wsss": "coco/annotations/instances_train2017_wsss.json",
        "voc_2007_trainval_wsl": "VOC2007/pseudo_voc_2007_trainval.json",
    }
    for name, file in files.items():
        metadata = MetadataCatalog.get(name)
        assert metadata.json_file.endswith(file)
        folder = "coco/train2017" if file.startswith("coco") else f"{file.split('/')[0]}/JPEGImages"
        assert metadata.image_root.endswith(folder)
    # AP25, 50, 70 and 75 are what VOC 2012's masks are judged by.
    assert MetadataCatalog.get("voc_2012_val_cocostyle").extra_iou_thresholds == (0.25, 0.7)
