"""Training targets against plain loops over levels, instances and cells."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adet.modeling.solov2.grids import PyramidGrids, exact_cells, reference_cells
from adet.modeling.solov2.targets import (
    centers_of_mass,
    image_targets,
    instance_bitmasks,
    quarter_masks,
)
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks

GRIDS = PyramidGrids(
    num_grids=(12, 8, 5),
    scale_ranges=((1, 30), (20, 60), (50, 1000)),
    strides=(8, 8, 16),
    sigma=0.5,
)


def slow_targets(masks, boxes, classes, frame_hw, grids, num_classes):
    """(level, cell, instance) in order and {(level, cell): class}, in float32 step by step."""
    positives, labels = [], {}
    f32 = np.float32
    for level, (grid, (low, high)) in enumerate(
        zip(grids.num_grids, grids.scale_ranges, strict=True)
    ):
        for n, (mask, box) in enumerate(zip(masks, boxes, strict=True)):
            width, height = f32(box[2] - box[0]), f32(box[3] - box[1])
            if not (low <= np.sqrt(width * height) < high) or not mask.any():
                continue
            ys, xs = np.nonzero(mask)
            center = [f32(ys.sum()) / f32(len(ys)), f32(xs.sum()) / f32(len(xs))]
            bounds = []
            for c, size, frame in zip(center, (height, width), frame_hw, strict=True):
                half = f32(0.5) * size * f32(grids.sigma)

                def cell(position, frame=frame, grid=grid):
                    return int(np.floor_divide(f32(position / f32(frame)), f32(1.0 / grid)))

                first = max(0, cell(c - half), cell(c) - 1)
                last = min(grid - 1, cell(c + half), cell(c) + 1)
                bounds.append(range(first, last + 1))
            for y in bounds[0]:
                for x in bounds[1]:
                    positives.append((level, y * grid + x, n))
                    labels[level, y * grid + x] = int(classes[n])
    return positives, labels


@st.composite
def scenes(draw):
    height, width = draw(st.integers(20, 90)), draw(st.integers(20, 90))
    count = draw(st.integers(1, 6))
    masks = np.zeros((count, height, width), bool)
    for mask in masks:
        y, x = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
        h, w = draw(st.integers(0, height)), draw(st.integers(1, width))
        mask[y : y + h, x : x + w] = True  # h of 0: an empty mask
    classes = draw(st.lists(st.integers(0, 3), min_size=count, max_size=count))
    return masks, classes


@settings(max_examples=40, deadline=None)
@given(scenes())
def test_targets_equal_plain_loops(scene):
    masks, classes = scene
    frame = tuple(32 * math.ceil(n / 32) for n in masks.shape[1:])
    instances = Instances(masks.shape[1:])
    instances.gt_masks = BitMasks(torch.from_numpy(masks))
    instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
    instances.gt_classes = torch.tensor(classes)
    got = image_targets(instances, (frame[0] // 4, frame[1] // 4), GRIDS, num_classes=4)
    boxes = instances.gt_boxes.tensor.numpy()
    positives, labels = slow_targets(masks, boxes, classes, frame, GRIDS, 4)
    assert got.cells.tolist() == [GRIDS.offsets[level] + cell for level, cell, _ in positives]
    assert got.instances.tolist() == [n for _, _, n in positives]
    want = torch.full((GRIDS.num_cells,), 4)
    for (level, cell), label in labels.items():
        want[GRIDS.offsets[level] + cell] = label
    assert torch.equal(got.classes, want)


def test_later_instances_overwrite_classes_and_both_keep_masks(make_instances):
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[0, 20:44, 20:44] = masks[1, 16:48, 16:48] = True
    targets = image_targets(make_instances(masks, [1, 3]), (16, 16), GRIDS, num_classes=4)
    first, second = (set(targets.cells[targets.instances == n].tolist()) for n in (0, 1))
    shared = first & second  # both have a size of level 1, only the first one of level 0
    assert len(shared) == 4 and len(first - second) == 9
    assert set(targets.classes[list(shared)].tolist()) == {3}
    assert set(targets.classes[list(first - second)].tolist()) == {1}
    assert targets.masks.flatten(1).sum(1).tolist() == [36, 64]


def test_an_image_without_instances_is_background():
    empty = Instances((64, 64), gt_classes=torch.zeros(0, dtype=torch.int64))
    empty.gt_boxes = Boxes(torch.zeros(0, 4))
    empty.gt_masks = BitMasks(torch.zeros(0, 64, 64, dtype=torch.bool))
    targets = image_targets(empty, (16, 16), GRIDS, num_classes=4)
    assert targets.masks.shape == (0, 16, 16)
    assert len(targets.cells) == len(targets.instances) == 0
    assert (targets.classes == 4).all()


def test_polygons_are_rasterised(make_instances):
    polygons = [[np.array([10.0, 10, 50, 10, 50, 40, 10, 40])]]
    instances = Instances((64, 64), gt_masks=PolygonMasks(polygons))
    masks = instance_bitmasks(instances)
    assert masks.dtype == torch.bool and masks.shape == (1, 64, 64)
    want = torch.zeros(64, 64, dtype=torch.bool)
    want[10:40, 10:50] = True
    assert (masks[0] ^ want).sum() <= 200  # a border pixel more or less
    instances.gt_classes = torch.tensor([2])
    targets = image_targets(instances, (16, 16), GRIDS, num_classes=4)  # boxes from the masks
    assert set(targets.classes.tolist()) == {2, 4}


def test_points_alone_do_not_train():
    bare = Instances((64, 64), gt_classes=torch.tensor([0]), gt_points=torch.tensor([[3.0, 4.0]]))
    with pytest.raises(ValueError, match="needs gt_masks"):
        image_targets(bare, (16, 16), GRIDS, num_classes=4)


def test_masks_larger_than_the_frame_are_refused():
    with pytest.raises(ValueError, match="do not fit a mask feature"):
        quarter_masks(torch.zeros(1, 100, 100), (16, 16))


def test_centers_of_mass_equal_the_reference(golden):
    figures = golden("solov2_misc.npz")
    shape = figures["nms/shape"]
    bits = np.unpackbits(figures["nms/masks"])[: shape.prod()].reshape(shape)
    centers, areas = centers_of_mass(torch.from_numpy(bits).bool())
    np.testing.assert_array_equal(centers[:, 0], figures["com/cx"])
    np.testing.assert_array_equal(centers[:, 1], figures["com/cy"])
    np.testing.assert_array_equal(areas, bits.sum((1, 2)))
    centers, _ = centers_of_mass(torch.zeros(1, 5, 6))
    np.testing.assert_array_equal(centers.T, figures["com/empty"])


def test_quarter_masks_equal_the_reference(golden):
    figures = golden("solov2_misc.npz")
    masks = torch.from_numpy(figures["imrescale/in"]).permute(2, 0, 1)
    got = quarter_masks(masks, (16, 16))
    np.testing.assert_array_equal(got[:, :9, :13], figures["imrescale/out"].transpose(2, 0, 1))
    assert got[:, 9:].sum() == got[:, :, 13:].sum() == 0


def test_a_position_on_a_border_belongs_to_the_cell_that_begins_there():
    positions = torch.arange(40) * 8  # every cell's first border
    exact = exact_cells(positions, 320, 40)
    assert exact.tolist() == list(range(40))
    # The published arithmetic, which training follows, puts some of them one too low.
    assert (exact - reference_cells(positions.float(), 320, 40)).unique().tolist() == [0, 1]


def test_lists_of_different_length_are_refused():
    with pytest.raises(ValueError, match="one entry a level"):
        PyramidGrids(num_grids=(4, 2), scale_ranges=((1, 9),), strides=(8, 8), sigma=0.2)
