"""Random boxes for tests are boxes."""

import torch

from detectron2.utils.testing import random_boxes


def test_random_boxes_have_sides_of_at_least_one_within_the_range():
    torch.manual_seed(0)
    boxes = random_boxes(500, max_coord=30)
    assert boxes.shape == (500, 4)
    assert (boxes[:, 2:] - boxes[:, :2]).min() > 1 - 1e-5
    assert boxes.min() >= 1 and boxes.max() <= 30
    assert random_boxes(0).shape == (0, 4)
