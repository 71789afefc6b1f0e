"""Which masks become proposals, and in which order, with a segmenter whose masks are known."""

import numpy as np
import pytest

from tests.weaksam.samples import BlockSegmenter, picture
from weaksam.proposals.files import SOURCES
from weaksam.proposals.prompts import (
    Clicks,
    Grid,
    Prompting,
    click_proposals,
    grid_points,
    image_proposals,
)

IMAGE = picture(0, 40, 60)


def around(x: float, y: float, reach: int) -> list[float]:
    """The box that BlockSegmenter gives, half-open, inside the image."""
    return [max(x - reach, 0), max(y - reach, 0), min(x + reach + 1, 60), min(y + reach + 1, 40)]


@pytest.fixture
def blocks():
    segmenter = BlockSegmenter()
    segmenter.set_image(IMAGE)
    return segmenter


def test_single_clicks_then_classes_each_with_masks_1_and_2(blocks):
    xy = np.array([[30.0, 20.0], [40.0, 10.0], [20.0, 30.0]])
    found = click_proposals(blocks, "coarse", xy, np.array([5, 2, 5]), Clicks())
    middles = [*xy, (40, 10), (25, 25)]  # class 2, then class 5
    assert found.boxes.tolist() == [around(*m, reach) for m in middles for reach in (4, 8)]
    np.testing.assert_allclose(found.scores, [0.6, 0.7] * 5, rtol=1e-6)
    assert set(found.source) == {SOURCES.index("coarse")}


def test_count_is_that_of_the_reference(blocks):
    rng = np.random.default_rng(0)
    xy, classes = rng.uniform(10, 38, (9, 2)), rng.integers(0, 4, 9)
    found = click_proposals(blocks, "fine", xy, classes, Clicks())
    assert len(found.boxes) == 2 * (len(xy) + len(np.unique(classes)))


def test_cross_points_are_single_and_suppressed(blocks):
    xy = np.array([[30.0, 20.0], [30.0, 20.0], [45.0, 12.0]])
    found = click_proposals(blocks, "cross", xy, np.zeros(3, int), Clicks())
    want = [around(*xy[i], reach) for i in (0, 2) for reach in (4, 8)]
    assert found.boxes.tolist() == want
    raw = click_proposals(blocks, "cross", xy, np.zeros(3, int), Clicks(cross_nms=1.0))
    assert len(raw.boxes) == 6


def test_empty_masks_are_dropped_and_counted(blocks):
    xy = np.array([[1.0, 20.0], [30.0, 20.0]])
    found = click_proposals(blocks, "cross", xy, np.zeros(2, int), Clicks())
    assert len(found.boxes) == 2 and found.dropped == 2


@pytest.mark.parametrize(
    "clicks,boxes", [(Clicks(masks=(0,)), 1), (Clicks(min_predicted_iou=0.65), 1), (Clicks(), 2)]
)
def test_settings_of_clicks(blocks, clicks, boxes):
    found = click_proposals(blocks, "cross", np.array([[30.0, 20.0]]), np.zeros(1, int), clicks)
    assert len(found.boxes) == boxes


def test_minimums_of_the_grid_are_exceeded_and_reached():
    blocks = BlockSegmenter()
    by_iou = Prompting(Grid(1, min_predicted_iou=0.6, min_stability=0.0))
    found = image_proposals(blocks, IMAGE, {}, by_iou)
    assert found.boxes.tolist() == [around(30, 20, 8)]  # 0.6 is not above 0.6
    (batch,) = blocks.points(grid_points(1, (40, 60)))
    stability = batch.stability[0].tolist()
    for minimum, count in ((stability[0], 3), (stability[0] + 1e-6, 2)):
        grid = Grid(1, min_predicted_iou=0.0, min_stability=minimum, nms=1.0)
        assert len(image_proposals(blocks, IMAGE, {}, Prompting(grid)).boxes) == count


def test_sources_come_in_order_from_one_encoding():
    blocks = BlockSegmenter()
    points = {
        "cross": (np.array([[30.0, 20.0]]), np.array([0])),
        "fine": (np.zeros((0, 2)), np.zeros(0, int)),
        "coarse": (np.array([[20.0, 20.0], [50.0, 20.0]]), np.array([1, 1])),
    }
    found = image_proposals(blocks, IMAGE, points, Prompting(Grid(4)))
    assert blocks.encoded == 1
    names = [SOURCES[s] for s in found.source]
    assert list(dict.fromkeys(names)) == ["grid", "coarse", "cross"]
    assert names.count("coarse") == 6 and names.count("cross") == 2


def test_grid_points_are_cell_centers_row_by_row():
    got = grid_points(2, (40, 60))
    assert got.tolist() == [[15, 10], [45, 10], [15, 30], [45, 30]]


def test_no_points_and_no_grid_give_no_boxes():
    found = image_proposals(BlockSegmenter(), IMAGE, {}, Prompting(grid=None))
    assert found.boxes.shape == (0, 4)


@pytest.mark.parametrize("bad", [{"masks": (3,)}, {"masks": ()}, {"by_class": ("grid",)}])
def test_impossible_settings(bad):
    with pytest.raises(ValueError, match="expected some of"):
        Clicks(**bad)


def test_groups_of_other_sizes_share_no_batch(blocks):
    xy = np.array([[10.0, 10], [20, 10], [30, 10], [40, 10], [50, 10], [30, 30]])
    batches = list(blocks.points(xy, np.array([7, 7, 3, 9, 9, 3])))
    rows = {int(p): m for batch in batches for p, m in zip(batch.prompts, batch.masks, strict=True)}
    assert sorted(rows) == [3, 7, 9]
    assert rows[7][0].nonzero().float().mean(0).tolist() == [10, 15]


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4)), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8), None]
)
def test_segmenters_refuse_other_images(image):
    with pytest.raises(ValueError, match="uint8 RGB"):
        BlockSegmenter().set_image(image)


def test_prompts_before_an_image_are_an_error(blocks):
    with pytest.raises(RuntimeError, match="set_image"):
        next(BlockSegmenter().points([[1, 2]]))
    with pytest.raises(ValueError, match="clicks have to be"):
        next(blocks.points([[1, np.nan]]))
    with pytest.raises(ValueError, match="box 1 is"):
        next(blocks.boxes([[1, 1, 4, 4], [3, 3, 3, 9]]))
