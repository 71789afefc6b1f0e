import copy
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from PIL import Image

from detectron2.config import get_cfg
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.data.datasets import load_coco_json
from detectron2.data.detection_utils import SizeMismatchError
from detectron2.structures import BoxMode

GOLDEN = Path(__file__).resolve().parents[2] / "golden"


def square(x, y, side, **more):
    corners = [x, y, x + side, y, x + side, y + side, x, y + side]
    box = {"bbox": [x, y, side, side], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    return box | {"segmentation": [[float(c) for c in corners]], "iscrowd": 0} | more


@pytest.fixture
def sample(image_folder):
    annotations = [square(2, 2, 6), square(1, 1, 4, iscrowd=1), square(25, 18, 10, category_id=1)]
    return {
        "file_name": f"{image_folder}/a.png",
        "image_id": 1,
        "width": 40,
        "height": 30,
        "annotations": annotations,
    }


def mapper(is_train=True, augmentations=(), **options):
    options = dict(image_format="BGR", use_instance_mask=True) | options
    return DatasetMapper(is_train, augmentations=list(augmentations), **options)


@pytest.mark.parametrize("mode", ["train", "test"])
def test_samples_equal_the_reference(mode):
    """Figures of clovaai/PointWSSIS bd3156e; MIN_SIZE 128, MAX_SIZE 200, no flip."""
    figures = np.load(GOLDEN / "mapper_figures.npz")
    folder = GOLDEN / "mrn_tinycoco"
    files = [folder / f"instances_train2017_tiny_{kind}.json" for kind in "sw"]
    dicts = [d for f in files for d in load_coco_json(str(f), str(folder), "coco_2017_train")]
    golden_mapper = mapper(
        mode == "train",
        [T.ResizeShortestEdge(128, 200)],
        instance_mask_format="bitmask",
        keep_annotations=True,
    )
    checked = 0
    for sample in dicts:
        prefix = f"mapper_{mode}/{sample['image_id']}"
        if f"{prefix}/boxes" not in figures:
            continue
        checked += 1
        result = golden_mapper(sample)
        instances = result["instances"]
        np.testing.assert_array_equal(instances.gt_boxes.tensor, figures[f"{prefix}/boxes"])
        np.testing.assert_array_equal(instances.gt_classes, figures[f"{prefix}/classes"])
        shape = figures[f"{prefix}/masks_shape"]
        masks = np.unpackbits(figures[f"{prefix}/masks_packed"])[: shape.prod()].reshape(shape)
        np.testing.assert_array_equal(instances.gt_masks.tensor, masks)
        if f"{prefix}/image" in figures:
            # other JPEG decoders may round differently
            difference = result["image"].numpy().astype(int) - figures[f"{prefix}/image"]
            assert np.abs(difference).max() <= 2
    assert checked == {"train": 2, "test": 3}[mode]


def test_the_given_dict_stays_as_it_is(sample):
    before = copy.deepcopy(sample)
    result = mapper(augmentations=[T.RandomFlip(1.0), T.Resize((60, 80))])(sample)
    assert sample == before
    assert result["image"].shape == (3, 60, 80) and result["image"].dtype == torch.uint8
    assert (result["height"], result["width"], result["image_id"]) == (30, 40, 1)
    assert "annotations" not in result


def test_crowds_and_empty_instances_are_left_out_in_training(sample):
    crop = T.CropTransform(0, 0, 20, 15)
    kept = mapper(augmentations=[crop])(sample)["instances"]
    assert kept.gt_classes.tolist() == [0]
    all_but_crowds = mapper(False, [crop], keep_annotations=True)(sample)["instances"]
    assert all_but_crowds.gt_classes.tolist() == [0, 1]


def test_at_test_time_annotations_go_unless_they_are_kept(sample):
    assert set(mapper(False)(sample)) == {"file_name", "image_id", "width", "height", "image"}
    kept = mapper(False, keep_annotations=True)(sample)
    assert len(kept["instances"]) == 2
    del sample["annotations"]
    assert "instances" not in mapper()(sample)


def test_masks_are_made_when_asked_for(sample):
    assert not mapper(use_instance_mask=False)(sample)["instances"].has("gt_masks")
    with pytest.raises(ValueError, match="recompute_boxes=True needs"):
        mapper(use_instance_mask=False, recompute_boxes=True)


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
def test_boxes_are_recomputed_from_cropped_masks(sample, mask_format):
    triangle = square(0, 0, 20) | {"segmentation": [[0.0, 0.0, 20.0, 20.0, 0.0, 20.0]]}
    point = {"point": [3.0, 4.0], "category_id": 1}
    sample["annotations"] = [triangle, point]
    crop, options = T.CropTransform(0, 0, 20, 10), dict(instance_mask_format=mask_format)
    loose = mapper(augmentations=[crop], **options)(sample)["instances"].gt_boxes.tensor
    tight = mapper(augmentations=[crop], recompute_boxes=True, **options)(sample)["instances"]
    assert loose.tolist() == [[0, 0, 20, 10], [3, 4, 3, 4]]
    np.testing.assert_allclose(tight.gt_boxes.tensor, [[0, 0, 10, 10], [3, 4, 3, 4]], atol=1)


def test_points_on_the_border_survive_enlarging_and_flipping(sample):
    sample["annotations"] = [
        {"point": [x, y], "category_id": 0} for x, y in [(0, 0), (40, 30), (39.9, 0.0), (20, 15)]
    ]
    augmentations = [T.ResizeTransform(30, 40, 120, 160), T.HFlipTransform(160)]
    points = mapper(augmentations=augmentations)(sample)["instances"].gt_points
    # the pixel centres nearest to the border, in the enlarged and flipped image
    expected = [[157.5, 1.5], [1.5, 117.5], [1.5, 1.5], [77.5, 61.5]]
    torch.testing.assert_close(points, torch.tensor(expected))


def test_label_maps_follow_the_image(sample, tmp_path):
    labels = np.random.default_rng(0).integers(0, 5, (30, 40), dtype=np.uint8)
    Image.fromarray(labels).save(tmp_path / "labels.png")
    sample["sem_seg_file_name"] = str(tmp_path / "labels.png")
    result = mapper(augmentations=[T.HFlipTransform(40)])(sample)
    np.testing.assert_array_equal(result["sem_seg"], labels[:, ::-1])
    assert result["sem_seg"].dtype == torch.int64 and "sem_seg_file_name" not in result


def test_grey_images_have_one_channel(sample):
    assert mapper(image_format="L")(sample)["image"].shape == (1, 30, 40)


def test_proposals_are_kept_when_asked_for(sample):
    sample["proposal_boxes"] = np.array([[0, 0, 5, 5], [1, 1, 6, 6]], dtype=np.float32)
    sample["proposal_bbox_mode"] = BoxMode.XYXY_ABS
    sample["proposal_objectness_logits"] = np.array([1.0, 0.5])
    result = mapper(False, precomputed_proposal_topk=1)(sample)
    assert len(result["proposals"]) == 1 and "proposal_boxes" not in result


def test_a_wrong_size_in_the_annotations_is_an_error(sample):
    with pytest.raises(SizeMismatchError, match="a.png"):
        mapper()(sample | {"width": 41})


def test_a_config_makes_the_mapper(sample):
    cfg = get_cfg()
    cfg.MODEL.MASK_ON, cfg.INPUT.MASK_FORMAT, cfg.INPUT.CROP.ENABLED = True, "bitmask", True
    cfg.INPUT.MIN_SIZE_TRAIN = (60,)
    train, test = DatasetMapper(cfg), DatasetMapper(cfg, is_train=False)
    names = [type(a).__name__ for a in train.augmentations.augs]
    assert names == ["RandomCrop", "ResizeShortestEdge", "RandomFlip"]
    assert train.recompute_boxes and not test.recompute_boxes
    assert "instances" in train(sample) and "instances" not in test(sample)
    assert "instances" in DatasetMapper(cfg, False, keep_annotations=True)(sample)


def jittering_config(size=24, scales=(0.5, 2.0), flip="none"):
    cfg = get_cfg()
    cfg.MODEL.MASK_ON, cfg.INPUT.MASK_FORMAT, cfg.INPUT.RANDOM_FLIP = True, "bitmask", flip
    cfg.INPUT.DATASET_MAPPER_NAME, cfg.INPUT.IMAGE_SIZE = "coco_instance_lsj", size
    cfg.INPUT.MIN_SCALE, cfg.INPUT.MAX_SCALE = scales
    return cfg


def test_jittered_images_are_squares_with_tight_boxes(sample):
    sample["annotations"][0] |= {"segmentation": rle(sample["annotations"][0], 30, 40)}
    mapping = DatasetMapper(jittering_config(flip="horizontal"), True)
    np.random.seed(0)
    counts, padded, cropped = set(), 0, 0
    for _ in range(40):
        x = mapping(copy.deepcopy(sample))
        assert x["image"].shape == (3, 24, 24)
        instances = x["instances"]
        counts.add(len(instances))
        assert instances.gt_masks.nonempty().all()
        tight = instances.gt_masks.get_bounding_boxes().tensor
        torch.testing.assert_close(instances.gt_boxes.tensor, tight)
        is_padding = (x["image"] == 128).all(0)
        assert not (instances.gt_masks.tensor & is_padding).any()
        padded += bool(is_padding[-1].all())
        cropped += not is_padding.any()
    assert counts == {1, 2} and padded > 5 and cropped > 5


def rle(annotation, height, width):
    """An annotation's polygons as a compressed RLE."""
    return mask_util.merge(mask_util.frPyObjects(annotation["segmentation"], height, width))


def test_the_scale_of_jittering_is_relative_to_the_square(sample):
    x = DatasetMapper(jittering_config(40, (0.5, 0.5)), True)(copy.deepcopy(sample))
    assert (x["image"] != 128).any(0).nonzero().amax(0).tolist() == [14, 19]  # of 15 x 20
    box = x["instances"].gt_boxes.tensor[0]
    torch.testing.assert_close(box, torch.tensor([1.0, 1.0, 4.0, 4.0]))


def test_testing_resizes_without_jittering(sample):
    cfg = jittering_config()
    cfg.INPUT.MIN_SIZE_TEST = 60
    assert DatasetMapper(cfg, False)(sample)["image"].shape == (3, 60, 80)
    cfg.INPUT.DATASET_MAPPER_NAME = "mask_former_semantic"
    with pytest.raises(ValueError, match="'mask_former_semantic'; expected '' or a name"):
        DatasetMapper(cfg, True)
