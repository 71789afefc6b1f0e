import json
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskrefinenet.crops import (
    POINT_BOX_SIDE,
    CropBox,
    crop_box,
    mask_bounds,
    network_input,
    point_in_crop,
    resize_image,
    resize_mask,
)
from maskrefinenet.pairs import match_predictions
from maskrefinenet.points import class_point_map
from maskrefinenet.predictions import read_predictions
from weaklabels.coco import load_annotations
from weaklabels.masks import center_of_mass, decode_mask


def test_gaussian_is_the_reference_s(golden):
    point = torch.tensor([[19, 19]])
    plane = class_point_map(point, torch.tensor([0]), 1, (39, 39))[0, 0]
    np.testing.assert_allclose(plane, golden["gaussian6"], atol=1e-7)


def test_class_point_maps_are_the_reference_s(golden):
    for i in range(7):
        x, y, channel = golden[f"point_{i}_args"].tolist()
        got = class_point_map(torch.tensor([[x, y]]), torch.tensor([channel]), 5, (48, 64))[0]
        np.testing.assert_allclose(got[channel], golden[f"point_{i}_plane"], atol=1e-7)
        assert got.count_nonzero() == got[channel].count_nonzero()


def slow_crop(mask: np.ndarray, point: tuple[float, float], scale: float) -> list[int]:
    """The crop rule by search: which pixel columns and rows lie in the scaled box."""
    bounds = []
    for axis, value in ((0, point[0]), (1, point[1])):
        size = mask.shape[1 - axis]
        value = min(max(value, 0), size - 1)
        hit = [i for i in range(size) if np.take(mask, i, axis=1 - axis).any()]
        if hit:
            length = max(hit[-1] - hit[0], 1) * scale
            low, high = (hit[0] + hit[-1] - length) / 2, (hit[0] + hit[-1] + length) / 2
        else:
            length = POINT_BOX_SIDE
            low, high = value - length / 2, value + length / 2
        low = value - length / 2 if value < low else low
        high = value + length / 2 if value > high else high
        inside = [i for i in range(size) if low - 1 < i <= high]
        bounds.append((inside[0], inside[-1]))
    return [bounds[0][0], bounds[1][0], bounds[0][1], bounds[1][1]]


coordinate = st.floats(-3, 40, allow_nan=False)


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 30), st.integers(1, 30)),
    st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), max_size=4),
    st.tuples(coordinate, coordinate),
    st.floats(1, 3),
)
def test_crop_box_matches_a_search_and_holds_mask_and_point(size_hw, pixels, point, scale):
    mask = np.zeros(size_hw, dtype=np.uint8)
    for row, column in pixels:
        mask[row % size_hw[0], column % size_hw[1]] = 1
    box = crop_box(mask, point, scale)
    assert [box.x0, box.y0, box.x1, box.y1] == slow_crop(mask, point, scale)
    assert box.of(mask).sum() == mask.sum()
    x, y = point_in_crop(point, box, (64, 64))
    assert 0 <= x < 64 and 0 <= y < 64


@pytest.mark.parametrize("pixels", [0, 1])
def test_empty_and_one_pixel_priors_have_a_crop(pixels):
    """The reference crashes on both."""
    mask = np.zeros((100, 120), dtype=np.uint8)
    mask[50, 60] = pixels
    box = crop_box(mask, (60.0, 50.0), 2.0)
    half = 1 if pixels else POINT_BOX_SIDE // 2
    assert box == CropBox(60 - half, 50 - half, 60 + half, 50 + half)


def test_bounds_and_centre_of_an_empty_mask_are_none():
    assert mask_bounds(np.zeros((4, 5))) is None
    assert center_of_mass(np.zeros((4, 5))) is None


def test_inference_inputs_are_the_reference_s(golden, tinycoco):
    annotations = load_annotations(tinycoco / "instances_train2017_tiny_w.json")
    (record,) = read_predictions(tinycoco / "pred_weak.pth", annotations)
    image, size = golden["decoded_632"], (64, 64)
    for i, instance in enumerate(record["instances"]):
        meta = golden[f"valid_{i}_meta"].tolist()
        prior = decode_mask(instance["segmentation"], *image.shape[:2])
        box = crop_box(prior, tuple(instance["point"]), 2.0)
        assert [box.x0, box.y0, box.x1, box.y1, box.height, box.width] == meta[6:12]
        dense = network_input(resize_image(box.of(image), size), resize_mask(box.of(prior), size))
        channel = annotations.category_ids.index(instance["category_id"]) + 1
        assert [instance["category_id"], channel] == [meta[1], meta[12]]
        point = torch.tensor([point_in_crop(tuple(instance["point"]), box, size)])
        plane = class_point_map(point, torch.tensor([0]), 1, size)[0].numpy()
        got = np.concatenate([dense[:3], plane, dense[3:]])
        np.testing.assert_allclose(got, golden[f"valid_{i}_dense"], atol=2e-6)


def test_training_crops_are_the_reference_s_plus_a_row_and_a_column(golden, tinycoco):
    """It leaves out the box's last row and column and numbers channels from 0, not from 1."""
    annotations = load_annotations(tinycoco / "instances_train2017_tiny_s.json")
    files = [tinycoco / f"pred_strong{i}.pth" for i in (1, 2)]
    read = [list(read_predictions(path, annotations)) for path in files]
    pairs = {}
    for number, records in enumerate(read):
        for pair in match_predictions(records, annotations, rule="nearest"):
            first = {r["image_id"]: len(r["instances"]) for r in read[0]}[pair.image.image_id]
            pairs[pair.image.image_id, pair.prediction_index + number * first] = pair
    order = json.loads((tinycoco.parent / "mrn_matched_labels.json").read_text())["after_shuffle"]
    for i, row in enumerate(order):
        pair = pairs[row["img_id"], row["pred_idx"]]
        scale = random.Random(1000 + i).uniform(1, 2)
        size = (pair.image.height, pair.image.width)
        box = crop_box(decode_mask(pair.prior, *size), pair.point_xy, scale)
        reference_box = CropBox(box.x0, box.y0, box.x1 - 1, box.y1 - 1)
        target = resize_mask(reference_box.of(decode_mask(pair.target, *size)), (64, 64))
        recorded = np.unpackbits(golden[f"train_{i}_target"]).reshape(64, 64)
        channels = golden[f"train_{i}_channels"].tolist()
        if pair.class_index == 0:  # the reference loses class 0; ours has a target to learn
            assert recorded.sum() == 0 and channels == [] and target.sum() > 0
        elif target.sum() > 0:
            assert channels == [pair.class_index]
            # It rounds the nearest pixel differently: at most the outline moves by one.
            overlap = (target & recorded).sum() / (target | recorded).sum()
            assert overlap > 0.9
