import logging

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch

from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, BoxMode, Instances, PolygonMasks


def rle_of(mask):
    return mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))


def boxed(box, **more):
    return {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 3} | more


def test_a_flip_moves_box_and_polygons():
    triangles = [[10, 10, 100, 100, 100, 10], [150, 150, 200, 150, 200, 200]]
    given = boxed(np.asarray([10, 10, 200, 300]), segmentation=triangles)
    result = utils.transform_instance_annotations(given, [T.HFlipTransform(400)], (400, 400))
    assert result is given
    np.testing.assert_allclose(result["bbox"], [200, 10, 390, 300])
    np.testing.assert_allclose(result["segmentation"][0], [390, 10, 300, 100, 300, 10])
    assert triangles[0] == [10, 10, 100, 100, 100, 10]
    instances = utils.annotations_to_instances([result, result], (400, 400))
    assert isinstance(instances.gt_masks, PolygonMasks) and len(instances) == 2
    assert instances.gt_classes.tolist() == [3, 3]


def test_boxes_are_converted_clipped_and_shifted_by_a_crop():
    given = {"bbox": [10, 10, 190, 390], "bbox_mode": BoxMode.XYWH_ABS}
    crop = T.CropTransform(150, 300, 40, 50)
    result = utils.transform_instance_annotations(given, T.TransformList([crop]), (50, 40))
    assert result["bbox"].tolist() == [0, 0, 40, 50]
    assert result["bbox_mode"] == BoxMode.XYXY_ABS


@pytest.mark.parametrize("as_list", [True, False])
def test_rle_becomes_a_transformed_mask(as_list):
    mask = np.zeros((30, 40), dtype=np.uint8)
    mask[:, :20] = 1
    rle = rle_of(mask)
    if as_list:
        rle = {"size": [30, 40], "counts": [0, 600, 600]}
    transforms = [T.HFlipTransform(40), T.ScaleTransform(30, 40, 60, 40, "bilinear")]
    given = boxed([0, 0, 20, 30], segmentation=rle)
    result = utils.transform_instance_annotations(given, transforms, (60, 40))
    expected = np.repeat(mask[:, ::-1], 2, axis=0)
    np.testing.assert_array_equal(result["segmentation"], expected)
    instances = utils.annotations_to_instances([result], (60, 40), mask_format="bitmask")
    assert isinstance(instances.gt_masks, BitMasks)
    np.testing.assert_array_equal(instances.gt_masks.tensor[0], expected)
    with pytest.raises(ValueError, match="'polygon'.*INPUT.MASK_FORMAT"):
        utils.annotations_to_instances([result], (60, 40))


def test_segmentations_of_another_size_or_type_are_refused():
    identity = [T.NoOpTransform()]
    with pytest.raises(ValueError, match="may be that of another image"):
        utils.transform_instance_annotations({"segmentation": rle_of(np.eye(5))}, identity, (9, 9))
    with pytest.raises(ValueError, match="segmentation of type"):
        utils.transform_instance_annotations({"segmentation": "x"}, identity, (9, 9))
    with pytest.raises(ValueError, match="keypoints are not supported"):
        utils.transform_instance_annotations({"keypoints": []}, identity, (9, 9))
    with pytest.raises(ValueError, match=r"segmentation of type .* \(H, W\) array"):
        anno = boxed([0, 0, 1, 1], segmentation=np.zeros(3))
        utils.annotations_to_instances([anno], (9, 9), mask_format="bitmask")
    with pytest.raises(ValueError, match="mask_format='maps'"):
        utils.annotations_to_instances([], (9, 9), mask_format="maps")


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
def test_no_annotations_give_empty_instances(mask_format):
    instances = utils.annotations_to_instances([], (9, 9), mask_format)
    assert len(instances) == 0 and instances.gt_boxes.tensor.shape == (0, 4)
    assert instances.gt_classes.dtype == torch.int64
    assert len(utils.filter_empty_instances(instances)) == 0


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
def test_a_missing_box_is_taken_from_the_mask(mask_format):
    anno = {"segmentation": [[2.0, 3.0, 7.0, 3.0, 7.0, 8.0, 2.0, 8.0]], "category_id": 0}
    instances = utils.annotations_to_instances([anno], (9, 9), mask_format)
    assert instances.gt_boxes.tensor.tolist() == [[2, 3, 7, 8]]


def test_empty_instances_are_filtered_by_box_or_mask():
    masks = np.zeros((3, 9, 9), dtype=np.uint8)
    masks[0, 2, 2] = masks[2, 3, 3] = 1
    boxes = [[0, 0, 5, 5], [0, 0, 5, 5], [3, 3, 3, 8]]
    annos = [boxed(b, segmentation=rle_of(m)) for b, m in zip(boxes, masks, strict=True)]
    instances = utils.annotations_to_instances(annos, (9, 9), mask_format="bitmask")
    _, kept = utils.filter_empty_instances(instances, return_mask=True)
    assert kept.tolist() == [True, False, False]
    assert len(utils.filter_empty_instances(instances, by_box=False)) == 2
    assert len(utils.filter_empty_instances(instances, by_mask=False)) == 2
    assert len(utils.filter_empty_instances(instances, by_mask=False, box_threshold=6)) == 0
    with pytest.raises(ValueError, match="by_box or by_mask"):
        utils.filter_empty_instances(instances, by_box=False, by_mask=False)


def test_image_sizes_are_checked_and_filled_in():
    image, known = np.zeros((30, 40, 3)), {"file_name": "a.png", "width": 40, "height": 30}
    utils.check_image_size(known, image)
    unknown = {}
    utils.check_image_size(unknown, image)
    assert unknown == {"width": 40, "height": 30}
    message = "image 'a.png' is 30 x 40 .* 40 x 30"
    with pytest.raises(utils.SizeMismatchError, match=message):
        utils.check_image_size(known | {"width": 30, "height": 40}, image)


def test_proposals_are_transformed_clipped_and_cut_to_the_best():
    sample = {
        "proposal_boxes": np.array([[1, 1, 3, 3], [8, 8, 9, 9], [2, 2, 4, 4], [0, 0, 5, 5]]),
        "proposal_bbox_mode": BoxMode.XYXY_ABS,
        "proposal_objectness_logits": np.array([4.0, 3.0, 2.0, 1.0]),
    }
    crop = T.CropTransform(1, 1, 5, 5)
    utils.transform_proposals(sample, (5, 5), crop, proposal_topk=2)
    assert list(sample) == ["proposals"] and isinstance(sample["proposals"], Instances)
    assert sample["proposals"].proposal_boxes.tensor.tolist() == [[0, 0, 2, 2], [1, 1, 3, 3]]
    assert sample["proposals"].objectness_logits.tolist() == [4, 2]
    nothing = {"image": 1}
    utils.transform_proposals(nothing, (5, 5), crop, proposal_topk=2)
    assert nothing == {"image": 1}


def test_metadata_of_joined_datasets_must_agree(caplog):
    logging.getLogger("detectron2").propagate = True
    for name, classes in {"one": ["a"], "two": ["a"], "three": ["b"]}.items():
        MetadataCatalog.get(name).thing_classes = classes
    utils.check_metadata_consistency("thing_classes", ["one", "two"])
    with pytest.raises(ValueError, match="'one' has.*'three' has"):
        utils.check_metadata_consistency("thing_classes", ["one", "two", "three"])
    with pytest.raises(AttributeError, match="stuff"):
        utils.check_metadata_consistency("stuff", ["one"])
    with pytest.raises(ValueError, match="at least one"):
        utils.check_metadata_consistency("thing_classes", [])


@pytest.mark.parametrize(("flip", "kept"), [("horizontal", 1), ("vertical", 2), ("none", 1)])
def test_hflip_train_false_leaves_out_horizontal_flips(flip, kept):
    cfg = get_cfg()
    cfg.merge_from_list(["INPUT.HFLIP_TRAIN", "False", "INPUT.RANDOM_FLIP", flip])
    assert len(utils.build_augmentation(cfg, is_train=True)) == kept


def test_the_config_s_augmentations():
    cfg = get_cfg()
    resize, flip = utils.build_augmentation(cfg, is_train=True)
    assert resize.short_edge_length == (800,) and resize.max_size == 1333 and not resize.is_range
    assert flip.horizontal and not flip.vertical
    (resize,) = utils.build_augmentation(cfg, is_train=False)
    assert isinstance(resize, T.ResizeShortestEdge)
    cfg.INPUT.RANDOM_FLIP = "vertical"
    assert utils.build_transform_gen(cfg, True)[1].vertical
    cfg.INPUT.RANDOM_FLIP = "none"
    assert len(utils.build_augmentation(cfg, True)) == 1
    cfg.INPUT.RANDOM_FLIP = "both"
    with pytest.raises(ValueError, match="INPUT.RANDOM_FLIP='both'"):
        utils.build_augmentation(cfg, True)
