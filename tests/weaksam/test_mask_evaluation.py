"""How instance segmenters are judged: AP at four IoUs on VOC, a file for COCO's server."""

import json
import logging

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO

from adet.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import Boxes, Instances
from weaklabels.masks import encode_mask, mask_fields
from wsis.training import Trainer

SIDE = 20
VOC = "voc_2012_val_cocostyle"  # its metadata is what is tested


@pytest.fixture
def register(tmp_path):
    """Register a file under a name with the metadata of another dataset; its path."""
    names = []

    def make(name, content, like):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(content))
        known = MetadataCatalog.get(like).as_dict()
        metadata = {k: known[k] for k in ("extra_iou_thresholds",) if k in known}
        register_coco_instances(name, metadata, str(path), str(tmp_path))
        names.append(name)
        return path

    yield make
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def rectangle(x0, y0, x1, y1):
    mask = np.zeros((SIDE, SIDE), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def dataset(*masks):
    annotations = [
        {"id": n, "image_id": 1, "category_id": 3, "iscrowd": 0, **mask_fields(rle)}
        for n, rle in enumerate(map(encode_mask, masks), start=1)
    ]
    return {
        "images": [{"id": 1, "file_name": "1.jpg", "height": SIDE, "width": SIDE}],
        "categories": [{"id": 3, "name": "bird"}],
        "annotations": annotations,
    }


def predictions(scores, masks):
    found = Instances((SIDE, SIDE), scores=torch.tensor(scores))
    found.pred_classes = torch.zeros(len(masks), dtype=torch.int64)
    found.pred_masks = torch.from_numpy(np.stack(masks))
    found.pred_boxes = Boxes(torch.zeros(len(masks), 4))
    return {"instances": found}


def evaluator_of(name, tmp_path, thresholds=()):
    cfg = get_cfg()
    cfg.TEST.EXTRA_IOU_THRESHOLDS = thresholds
    cfg.OUTPUT_DIR = str(tmp_path)
    evaluator = Trainer.build_evaluator(cfg, name)
    evaluator.reset()
    return evaluator


def test_vocs_masks_are_judged_at_four_ious_with_their_protocol(register, tmp_path, caplog):
    register("voc_masks", dataset(rectangle(0, 0, 10, 10), rectangle(10, 10, 20, 20)), VOC)
    evaluator = evaluator_of("voc_masks", tmp_path)
    found = [rectangle(0, 0, 6, 10), rectangle(10, 10, 20, 13)]  # IoU 0.6 and 0.3
    evaluator.process([{"image_id": 1}], [predictions([0.9, 0.8], found)])
    with caplog.at_level(logging.INFO):
        results = evaluator.evaluate()["segm"]
    half = 100 * 51 / 101  # the first of two is right: recalls 0, 0.01, ..., 0.5 have precision 1
    got = [results[name] for name in ("AP25", "AP50", "AP70", "AP75")]
    assert got == pytest.approx([100, half, 0, 0])
    assert results["AP"] == pytest.approx(half * 3 / 10)  # 0.50, 0.55, 0.60
    protocol = next(m for m in caplog.messages if m.startswith("Protocol") and "segm" in m)
    for part in ("100 detections an image", "IoU 0.50:0.05:0.95", "AP25 at 0.25", "AP70 at 0.7"):
        assert part in protocol


def test_own_data_is_judged_at_the_ious_of_the_config(register, tmp_path):
    register("own_masks", dataset(rectangle(0, 0, 10, 10)), "coco_2017_val")
    for thresholds, want in (((), set()), ((0.25, 0.7, 0.5), {"AP25", "AP70"})):
        evaluator = evaluator_of("own_masks", tmp_path, thresholds)
        evaluator.process([{"image_id": 1}], [predictions([0.9], [rectangle(0, 0, 3, 10)])])
        results = evaluator.evaluate()["segm"]
        assert {name for name in results if name in ("AP25", "AP70")} == want
    assert (results["AP25"], results["AP70"]) == (pytest.approx(100), 0)


def test_test_dev_gives_the_file_that_the_server_reads(register, tmp_path, caplog):
    content = dataset()
    del content["annotations"]
    path = register("test_dev", content, "coco_2017_test-dev")
    evaluator = evaluator_of("test_dev", tmp_path)
    mask = rectangle(2, 3, 9, 9)
    evaluator.process([{"image_id": 1}], [predictions([0.5], [mask])])
    with caplog.at_level(logging.INFO):
        assert evaluator.evaluate() == {}
    assert "no AP. Protocol: COCO's server measures coco_instances_results.json" in caplog.text
    written = tmp_path / "inference" / "coco_instances_results.json"
    (result,) = json.loads(written.read_text())
    assert {"image_id", "category_id", "segmentation", "score"} <= result.keys()
    api = COCO(str(path))
    (read,) = api.loadRes(str(written)).anns.values()
    assert read["category_id"] == 3  # the dataset's id, not the network's
    np.testing.assert_array_equal(api.annToMask(read), mask)
