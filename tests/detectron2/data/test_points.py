"""Points travel with the masks that they label, through every geometric transform."""

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detectron2.data import transforms as T
from detectron2.data.detection_utils import (
    annotations_to_instances,
    filter_empty_instances,
    transform_instance_annotations,
)
from detectron2.structures import BoxMode

HEIGHT, WIDTH = 24, 32


def center_of_mass(mask):
    rows, columns = np.nonzero(mask)
    return np.array([columns.mean(), rows.mean()])


def blob(seed, height=HEIGHT, width=WIDTH):
    """A random ellipse with noisy edges, as (height, width) uint8."""
    rng = np.random.default_rng(seed)
    ys, xs = np.mgrid[:height, :width]
    cy, cx = rng.uniform(0.3, 0.7, 2) * (height, width)
    ry, rx = rng.uniform(0.1, 0.25, 2) * (height, width)
    inside = ((ys - cy) / ry) ** 2 + ((xs - cx) / rx) ** 2 < rng.uniform(0.5, 1, ys.shape)
    inside[int(cy), int(cx)] = True
    return inside.astype(np.uint8)


def carried(mask, transform, size_hw):
    """The mask and the point of one annotation after the transform."""
    annotation = {
        "segmentation": mask_util.encode(np.asfortranarray(mask)),
        "point": center_of_mass(mask).tolist(),
        "category_id": 0,
    }
    result = transform_instance_annotations(annotation, T.TransformList([transform]), size_hw)
    return result["segmentation"], result["point"]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), is_horizontal=st.booleans())
def test_a_flipped_point_is_the_centre_of_the_flipped_mask(seed, is_horizontal):
    flip = T.HFlipTransform(WIDTH) if is_horizontal else T.VFlipTransform(HEIGHT)
    mask, point = carried(blob(seed), flip, (HEIGHT, WIDTH))
    np.testing.assert_allclose(point, center_of_mass(mask), atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), turns=st.integers(1, 3))
def test_quarter_turns_are_exact(seed, turns):
    rotation = T.RotationTransform(HEIGHT, WIDTH, 90 * turns)
    mask, point = carried(blob(seed), rotation, (rotation.bound_h, rotation.bound_w))
    np.testing.assert_allclose(point, center_of_mass(mask), atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), angle=st.floats(-180, 180))
def test_rotation_by_any_angle_is_right_within_sampling_error(seed, angle):
    rotation = T.RotationTransform(HEIGHT, WIDTH, angle)
    mask, point = carried(blob(seed), rotation, (rotation.bound_h, rotation.bound_w))
    assert np.abs(point - center_of_mass(mask)).max() < 0.5


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), offset=st.tuples(st.integers(0, 4), st.integers(0, 4)))
def test_a_crop_around_the_mask_moves_the_point_by_its_corner(seed, offset):
    mask = np.pad(blob(seed), 8)
    crop = T.CropTransform(*offset, WIDTH + 10, HEIGHT + 10)
    cropped, point = carried(mask, crop, (HEIGHT + 10, WIDTH + 10))
    np.testing.assert_allclose(point, center_of_mass(cropped), atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), factor=st.integers(2, 4))
def test_enlarging_by_whole_factors_is_exact_and_shrinking_nearly(seed, factor):
    big_hw = (HEIGHT * factor, WIDTH * factor)
    mask, point = carried(blob(seed), T.ResizeTransform(HEIGHT, WIDTH, *big_hw), big_hw)
    np.testing.assert_allclose(point, center_of_mass(mask), atol=1e-9)
    shrink = T.ResizeTransform(*big_hw, HEIGHT, WIDTH)
    small, back = carried(mask, shrink, (HEIGHT, WIDTH))
    np.testing.assert_allclose(back, center_of_mass(small), atol=1e-6)


@pytest.mark.parametrize(
    "augmentation",
    [
        T.RandomFlip(1.0),
        T.Resize((48, 40)),
        T.ResizeShortestEdge(60),
        T.ResizeScale(0.8, 1.2, 64, 80),
        T.RandomCrop("absolute", (20, 30)),
        T.FixedSizeCrop((40, 50)),
        T.RandomRotation((-30, 30)),
        T.RandomExtent((0.9, 1.1), (0.1, 0.1)),
        T.RandomBrightness(0.5, 1.5),
    ],
    ids=lambda augmentation: type(augmentation).__name__,
)
def test_every_augmentation_carries_points_as_it_carries_pixels(augmentation):
    np.random.seed(0)
    image = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    image[10:14, 14:18] = 255  # centre of mass (15.5, 11.5)
    transform = augmentation.get_transform(image)
    result = transform.apply_image(image).astype(float)
    annotation = transform_instance_annotations(
        {"point": [15.5, 11.5], "category_id": 0}, [transform], result.shape
    )
    rows, columns = np.mgrid[: result.shape[0], : result.shape[1]]
    if isinstance(augmentation, T.FixedSizeCrop):
        result[HEIGHT:] = result[:, WIDTH:] = 0  # the padding is grey
    weighted = [(columns * result).sum() / result.sum(), (rows * result).sum() / result.sum()]
    np.testing.assert_allclose(annotation["point"], weighted, atol=0.5)


def polygon_annotation(**more):
    square = [[4.0, 4.0, 12.0, 4.0, 12.0, 12.0, 4.0, 12.0]]
    return (
        {"bbox": [4, 4, 12, 12], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1}
        | {"segmentation": square}
        | more
    )


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
def test_missing_points_are_the_centres_of_their_masks(mask_format):
    annotations = [polygon_annotation(), {"point": [20.0, 3.0], "category_id": 0}]
    instances = annotations_to_instances(annotations, (HEIGHT, WIDTH), mask_format)
    assert instances.gt_points.tolist() == [[7.5, 7.5], [20, 3]]
    assert instances.gt_points.dtype == torch.float32
    assert instances.gt_boxes.tensor.tolist() == [[4, 4, 12, 12], [20, 3, 20, 3]]
    assert instances.gt_masks.nonempty().tolist() == [True, False]
    assert len(filter_empty_instances(instances)) == 2


def test_without_any_point_or_mask_the_fields_are_not_made():
    assert not annotations_to_instances([polygon_annotation()], (9, 9)).has("gt_points")
    instances = annotations_to_instances([{"point": [1, 2], "category_id": 0}], (9, 9))
    assert not instances.has("gt_masks")
    box_only = {"bbox": [2, 2, 6, 4], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    both = annotations_to_instances([box_only, {"point": [1, 2], "category_id": 0}], (9, 9))
    assert both.gt_points.tolist() == [[3.5, 2.5], [1, 2]]  # pixel indices of the box's centre


def test_points_inside_always_index_a_pixel():
    annotations = [
        {"point": point, "category_id": 0}
        for point in [[-0.5, 3], [-0.6, 3], [WIDTH - 0.5, HEIGHT - 0.5], [5, HEIGHT]]
    ]
    points = annotations_to_instances(annotations, (HEIGHT, WIDTH)).gt_points
    expected = torch.tensor([[0, 3], [-0.6, 3], [WIDTH - 1, HEIGHT - 1], [5, HEIGHT]])
    torch.testing.assert_close(points, expected.float())


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
def test_what_a_crop_leaves_of_points(mask_format):
    crop = T.CropTransform(0, 0, 8, 6)
    annotations = [
        polygon_annotation(point=[9.0, 9.0]),  # point cut off, a part of the mask stays
        {"point": [9.0, 3.0], "category_id": 2},  # cut off
        {"point": [7.0, 5.0], "category_id": 3},  # stays
    ]
    transformed = [transform_instance_annotations(a, [crop], (6, 8)) for a in annotations]
    instances = annotations_to_instances(transformed, (6, 8), mask_format)
    kept, was_kept = filter_empty_instances(instances, return_mask=True)
    assert was_kept.tolist() == [True, False, True]
    assert kept.gt_classes.tolist() == [1, 3]
    assert kept.gt_points.tolist() == [[5.5, 4.5], [7, 5]]  # centre of what is visible
