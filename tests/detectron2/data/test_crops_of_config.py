"""`INPUT.CROP`: how often to crop, and a resizing before it (DETR's augmentation)."""

import numpy as np
import pytest

from detectron2.config import get_cfg
from detectron2.data import transforms as T
from detectron2.data.detection_utils import build_crop


def crop_config(**changes):
    cfg = get_cfg()
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE = True, "absolute_range"
    cfg.INPUT.CROP.SIZE = [10, 12]
    for name, value in changes.items():
        cfg.INPUT.CROP[name] = value
    return cfg


def sizes_of(cfg, count=60):
    """Sizes of an image of 20 x 40 after the crop, over many draws."""
    crop, image = build_crop(cfg), np.zeros((20, 40, 3), np.uint8)
    np.random.seed(0)
    sizes = []
    for _ in range(count):
        given = T.AugInput(image)
        crop(given)
        sizes.append(given.image.shape[:2])
    return sizes


def test_by_default_every_image_is_cropped():
    sizes = np.array(sizes_of(crop_config()))
    assert ((sizes >= 10) & (sizes <= 12)).all()


def test_some_images_are_cropped_after_a_resizing():
    sizes = sizes_of(crop_config(PROB=0.5, MIN_SIZES=(5, 8)))
    whole = sizes.count((20, 40))
    assert 18 < whole < 42  # untouched ones
    cropped = {height for height, width in sizes if (height, width) != (20, 40)}
    assert cropped == {5, 8}  # edges are shorter than the smallest crop


def test_a_probability_is_a_probability():
    with pytest.raises(ValueError, match="INPUT.CROP.PROB=1.5"):
        build_crop(crop_config(PROB=1.5))
