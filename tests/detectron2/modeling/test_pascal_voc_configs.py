"""The Pascal VOC configs load whole, name registered datasets and build detectors of 20 classes."""

from pathlib import Path

import pytest
import torch

from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.pascal_voc import CLASS_NAMES
from detectron2.modeling import build_model

FOLDER = Path(__file__).resolve().parents[3] / "configs" / "PascalVOC-Detection"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_config_builds_a_detector_of_the_voc_classes(path, caplog):
    cfg = get_cfg()
    cfg.merge_from_file(str(path))
    assert "dropped" not in caplog.text
    assert cfg.SOLVER.STEPS[-1] < cfg.SOLVER.MAX_ITER
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        assert MetadataCatalog.get(name).thing_classes == list(CLASS_NAMES)
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg)
    predictor = model.roi_heads.box_predictor
    assert predictor.cls_score.out_features == len(CLASS_NAMES) + 1  # and background
    assert predictor.bbox_pred.out_features == 4 * len(CLASS_NAMES)
    assert not model.roi_heads.mask_on
