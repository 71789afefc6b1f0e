"""Precomputed proposals: their files, and their way to the model's input."""

import json

import cv2
import numpy as np
import pytest

import detectron2.data.transforms as T
from detectron2.config import get_cfg
from detectron2.data import (
    DatasetMapper,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
    load_proposals_into_dataset,
)
from detectron2.data.detection_utils import transform_proposals
from detectron2.data.proposals import read_proposals
from detectron2.structures import BoxMode

IDS = np.array([7, 3, 7, 7])
BOXES = np.array([[0.0, 0, 10, 20], [5, 5, 25, 15], [2, 4, 8, 16], [1, 1, 3, 3]])
SCORES = np.array([0.25, 1.5, 0.75, -2.0])


@pytest.fixture(params=["npz", "npz_xywh", "json"])
def proposal_file(request, tmp_path):
    xywh = BoxMode.convert(BOXES, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
    path = tmp_path / f"proposals.{request.param[:4].rstrip('_')}"
    if request.param == "npz":
        np.savez(path, image_ids=IDS, boxes=BOXES, scores=SCORES)
    elif request.param == "npz_xywh":
        mode = int(BoxMode.XYWH_ABS)
        np.savez(path, image_ids=IDS, boxes=xywh, scores=SCORES, bbox_mode=mode)
    else:
        rows = zip(IDS.tolist(), xywh.tolist(), SCORES.tolist(), strict=True)
        records = [{"image_id": i, "bbox": box, "score": score} for i, box, score in rows]
        path.write_text(json.dumps(records))
    return str(path)


def test_each_image_gets_its_boxes_best_first(proposal_file, caplog):
    dicts = load_proposals_into_dataset(
        [{"image_id": "7"}, {"image_id": 3}, {"image_id": 12}], proposal_file
    )
    assert dicts[0]["proposal_boxes"].tolist() == BOXES[[2, 0, 3]].tolist()
    assert dicts[0]["proposal_objectness_logits"].tolist() == [0.75, 0.25, -2.0]
    assert dicts[1]["proposal_boxes"].tolist() == BOXES[[1]].tolist()
    assert dicts[2]["proposal_boxes"].shape == (0, 4)
    assert all(d["proposal_bbox_mode"] == BoxMode.XYXY_ABS for d in dicts)
    assert "1 of 3 images, such as image_id 12" in caplog.text


def test_the_file_of_another_dataset_is_refused(proposal_file):
    with pytest.raises(ValueError, match="none of 1 images .*'other'"):
        load_proposals_into_dataset([{"image_id": "other"}], proposal_file)


def test_wrong_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent.npz"):
        read_proposals(str(tmp_path / "absent.npz"))
    (tmp_path / "old.pkl").write_bytes(b"")
    with pytest.raises(ValueError, match="pickles are not read"):
        read_proposals(str(tmp_path / "old.pkl"))
    np.savez(tmp_path / "part.npz", boxes=BOXES, scores=SCORES)
    with pytest.raises(ValueError, match=r"lacks \['image_ids'\]"):
        read_proposals(str(tmp_path / "part.npz"))
    np.savez(tmp_path / "uneven.npz", image_ids=IDS[:2], boxes=BOXES, scores=SCORES)
    with pytest.raises(ValueError, match="2 image ids"):
        read_proposals(str(tmp_path / "uneven.npz"))
    np.savez(tmp_path / "nan.npz", image_ids=IDS, boxes=BOXES * np.nan, scores=SCORES)
    with pytest.raises(ValueError, match="NaN"):
        read_proposals(str(tmp_path / "nan.npz"))
    (tmp_path / "a.json").write_text('[{"image_id": 1, "bbox": [0, 0, 1, 1]}]')
    with pytest.raises(ValueError, match="record 0"):
        read_proposals(str(tmp_path / "a.json"))
    (tmp_path / "b.json").write_text("{}")
    with pytest.raises(ValueError, match="list of objects"):
        read_proposals(str(tmp_path / "b.json"))


@pytest.fixture
def dataset(tmp_path):
    """An inline dataset of two 40 x 60 images with one object each; returns its text."""
    images, annotations = [], []
    for i in (3, 7):
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.zeros((40, 60, 3), np.uint8))
        images.append({"id": i, "file_name": f"{i}.png", "height": 40, "width": 60})
        box = {"bbox": [5, 5, 20, 10], "area": 200, "iscrowd": 0}
        annotations.append({"id": i, "image_id": i, "category_id": 1} | box)
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "thing"}],
    }
    (tmp_path / "ann.json").write_text(json.dumps(content))
    return f"proposals_{tmp_path.name}={tmp_path / 'ann.json'}:{tmp_path}"


def make_config(dataset, proposal_file):
    cfg = get_cfg()
    cfg.MODEL.LOAD_PROPOSALS = True
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (dataset,)
    cfg.DATASETS.PROPOSAL_FILES_TRAIN = cfg.DATASETS.PROPOSAL_FILES_TEST = (proposal_file,)
    cfg.DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN = 2
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (80,), 20
    cfg.INPUT.RANDOM_FLIP = "none"
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.DATALOADER.NUM_WORKERS = 0
    return cfg


def test_proposals_reach_the_model_in_its_frame(dataset, proposal_file):
    cfg = make_config(dataset, proposal_file)
    by_id = {x["image_id"]: x for x in next(iter(build_detection_train_loader(cfg)))}
    proposals = by_id[7]["proposals"]  # twice as large, the best two
    assert proposals.proposal_boxes.tensor.tolist() == (2 * BOXES[[2, 0]]).tolist()
    assert proposals.image_size == (80, 120)
    (second,) = [x for batch in build_detection_test_loader(cfg, dataset) for x in batch
                 if x["image_id"] == 7]  # fmt: skip
    assert second["proposals"].proposal_boxes.tensor.tolist() == (BOXES[[2, 0, 3]] / 2).tolist()


def test_each_dataset_needs_its_file(dataset, proposal_file):
    cfg = make_config(dataset, proposal_file)
    cfg.DATASETS.PROPOSAL_FILES_TRAIN = cfg.DATASETS.PROPOSAL_FILES_TEST = ()
    with pytest.raises(ValueError, match="PROPOSAL_FILES_TRAIN"):
        build_detection_train_loader(cfg)
    with pytest.raises(ValueError, match="PROPOSAL_FILES_TEST"):
        build_detection_test_loader(cfg, dataset)
    with pytest.raises(ValueError, match="as many proposal files"):
        get_detection_dataset_dicts(dataset, proposal_files=[proposal_file] * 2)
    cfg.MODEL.LOAD_PROPOSALS = False
    assert DatasetMapper(cfg, is_train=True).proposal_topk is None
    assert "proposals" not in next(iter(build_detection_train_loader(cfg)))[0]


def test_a_topk_of_0_keeps_every_row_through_flips_and_sizes():
    cfg = get_cfg()
    cfg.MODEL.LOAD_PROPOSALS = True
    boxes = np.array([[0, 0, 10, 8], [35, 2, 60, 9], [4, 4, 4, 6.0]], dtype=np.float32)
    for topk, count in ((0, 3), (5, 2)):
        record = {
            "proposal_boxes": boxes,
            "proposal_objectness_logits": np.zeros(3, dtype=np.float32),
            "proposal_bbox_mode": BoxMode.XYXY_ABS,
        }
        flip = T.TransformList([T.HFlipTransform(40), T.ResizeTransform(20, 40, 40, 80)])
        transform_proposals(record, (40, 80), flip, proposal_topk=topk)
        assert len(record["proposals"]) == count
    # Clipped to the image, the second box ends at its border, which is now the left one.
    assert record["proposals"].proposal_boxes.tensor.tolist() == [[60, 0, 80, 16], [0, 4, 10, 18]]
