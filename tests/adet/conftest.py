"""Small networks, scenes and golden figures for the tests of adet."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from adet.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from tests.golden.inputs import IMAGES, fill_state_dict, make_image

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"


@pytest.fixture(scope="session")
def golden():
    """Load recorded figures of tests/golden by file name."""
    return lambda name: np.load(GOLDEN / name)


@pytest.fixture(scope="session")
def make_cfg():
    """A config of a network of a few thousand weights; keyword arguments set MODEL.SOLOV2 keys."""

    def make(**solov2):
        cfg = get_cfg()
        cfg.merge_from_file(str(ROOT / "configs" / "Quickstart" / "Base-small.yaml"))
        cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 8
        cfg.MODEL.RESNETS.NORM, cfg.MODEL.FPN.NORM = "FrozenBN", ""
        cfg.MODEL.FPN.OUT_CHANNELS = 32
        node = cfg.MODEL.SOLOV2
        node.INSTANCE_IN_CHANNELS = node.MASK_IN_CHANNELS = 32
        node.INSTANCE_CHANNELS = node.MASK_CHANNELS = node.NUM_KERNELS = node.NUM_MASKS = 32
        node.NUM_GRIDS, node.NUM_CLASSES = [12, 10, 8, 6, 4], 4
        node.FPN_SCALE_RANGES = ((1, 24), (16, 40), (32, 64), (48, 96), (80, 2048))
        for key, value in solov2.items():
            setattr(node, key, value)
        return cfg

    return make


@pytest.fixture(scope="session")
def make_model(make_cfg):
    """A small network in evaluation mode whose weights come from the golden rule."""

    def make(**solov2):
        return fill_state_dict(build_model(make_cfg(**solov2))).eval()

    return make


@pytest.fixture(scope="session")
def make_instances():
    """Instances with gt_masks, gt_boxes and gt_classes from masks (N, H, W) bool."""

    def make(masks, classes):
        masks = torch.as_tensor(masks)
        instances = Instances(tuple(masks.shape[1:]))
        instances.gt_masks = BitMasks(masks)
        instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
        instances.gt_classes = torch.as_tensor(classes)
        return instances

    return make


@pytest.fixture(scope="session")
def golden_records(make_instances):
    """Input records of the golden images; `classes` replaces the images' own class labels."""

    def make(classes=None):
        records = []
        for i, spec in enumerate(IMAGES):
            scene = make_image(spec)
            labels = scene["classes"] if classes is None else classes[i]
            instances = make_instances(scene["masks"], labels)
            assert torch.equal(instances.gt_boxes.tensor, torch.from_numpy(scene["boxes"]))
            records.append(
                {
                    "image": torch.from_numpy(scene["image"]),
                    "instances": instances,
                    "height": scene["out_h"],
                    "width": scene["out_w"],
                }
            )
        return records

    return make


@pytest.fixture(scope="session")
def make_reference_model():
    """The network of the golden figures: depth 50 with 4 classes or depth 101 with 80."""

    def make(depth):
        logging.getLogger("detectron2.config.upstream").setLevel(logging.ERROR)
        cfg = get_cfg()
        cfg.merge_from_file(str(ROOT / "configs" / "PointWSSIS" / f"R{depth}_teacher.yaml"))
        cfg.MODEL.DEVICE = "cpu"
        if depth == 50:
            cfg.MODEL.SOLOV2.NUM_CLASSES = 4
            cfg.MODEL.SOLOV2.NUM_GRIDS = [40, 36, 24, 16, 12]
        return fill_state_dict(build_model(cfg)).eval()

    return make


@pytest.fixture(scope="session")
def reference_r50(make_reference_model):
    return make_reference_model(50)


@pytest.fixture
def scene(make_instances):
    """One record of 96 x 128 pixels with three instances and their points."""
    masks = torch.zeros(3, 96, 128, dtype=torch.bool)
    masks[0, 8:30, 10:34] = True
    masks[1, 40:90, 50:120] = True
    masks[2, 5:17, 90:104] = True
    instances = make_instances(masks, [0, 2, 1])
    instances.gt_points = torch.tensor([[21.5, 18.5], [84.5, 64.5], [96.5, 10.5]])
    image = torch.from_numpy(np.random.RandomState(0).randint(0, 256, (3, 96, 128)).astype("uint8"))
    return {"image": image, "instances": instances, "height": 192, "width": 192}


@pytest.fixture
def points_only():
    """Instances of the same labels with nothing but gt_points, gt_classes and zero-size boxes."""

    def make(instances):
        bare = Instances(instances.image_size)
        bare.gt_points, bare.gt_classes = instances.gt_points, instances.gt_classes
        bare.gt_boxes = Boxes(instances.gt_points.repeat(1, 2))
        return bare

    return make
