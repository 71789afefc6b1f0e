"""Prompts from rough masks against loops over all pixels, and what segmenters make of them."""

import math

import numpy as np
import pytest
import torch

from tests.weaksam.samples import BlockSegmenter, picture
from weaksam.mask_prompts import (
    SETTINGS,
    PromptSettings,
    background_point,
    elastic_box,
    faded_mask,
    inner_point,
    likeness,
    mask_box,
    mask_prompts,
    refined_masks,
    require_boxes,
    unit_features,
)
from weaksam.segmenters.extras import ALL_PARTS
from weaksam.segmenters.protocol import CombiningSegmenter, PromptBatch
from weaksam.segmenters.spec import load_segmenter
from weaksam.segmenters.tiny_scenes import draw_scene

pytestmark = pytest.mark.usefixtures("one_thread")
SIZE = (14, 18)


def random_masks(count: int = 25) -> list[np.ndarray]:
    """Blobs, some cut by the image's border, some with holes; the last fills the image."""
    rng = np.random.default_rng(3)
    y, x = np.indices(SIZE)
    masks = []
    for _ in range(count):
        center, radius = rng.uniform((0, 0), SIZE), rng.uniform(1.5, 7)
        blob = (y - center[0]) ** 2 + 0.5 * (x - center[1]) ** 2 < radius**2
        masks.append(blob & (rng.random(SIZE) > 0.15))
    return [mask for mask in masks if mask.any()] + [np.ones(SIZE, bool)]


def depth(mask: np.ndarray, row: int, column: int) -> float:
    """Distance of a pixel to the nearest one that is not of the mask, beyond the image as well."""
    height, width = mask.shape
    return min(
        math.hypot(y - row, x - column)
        for y in range(-1, height + 1)
        for x in range(-1, width + 1)
        if not (0 <= y < height and 0 <= x < width and mask[y, x])
    )


def gap(mask: np.ndarray, row: int, column: int) -> float:
    """Distance of a pixel to the mask."""
    return min(math.hypot(y - row, x - column) for y, x in np.argwhere(mask))


@pytest.mark.parametrize("number", range(0, 24, 3))
def test_clicks_are_where_loops_find_them(number):
    mask = random_masks()[number]
    x, y = inner_point(mask)
    depths = {(r, c): depth(mask, r, c) for r, c in np.argwhere(mask).tolist()}
    assert depths[y, x] == pytest.approx(max(depths.values()), abs=1e-4)
    x0, y0, x1, y1 = mask_box(mask).astype(int)
    inside = [(r, c) for r in range(y0, y1) for c in range(x0, x1)]
    gaps = {place: gap(mask, *place) for place in inside}
    found = background_point(mask)
    farthest = max(gaps.values())
    assert (found is None) == (farthest == 0)
    if found is not None:
        assert gaps[found[1], found[0]] == pytest.approx(farthest, abs=1e-4)


def test_a_mask_that_fills_its_box_has_no_background_click():
    full = random_masks()[-1]
    assert background_point(full) is None
    assert inner_point(full) in {(float(x), float(y)) for x in range(6, 12) for y in (6, 7)}
    prompts = mask_prompts(full[None], ALL_PARTS)
    assert not prompts.background.any() and (prompts.clicks[0, 0] == prompts.clicks[0, 1]).all()
    np.testing.assert_array_equal(prompts.boxes, [[0, 0, SIZE[1], SIZE[0]]])  # nowhere to go


def test_faded_masks_by_a_loop():
    for mask in random_masks()[:6]:
        middle = inner_point(mask)
        got = faded_mask(mask, middle, SETTINGS)
        for y in range(SIZE[0]):
            for x in range(SIZE[1]):
                squared = (x - middle[0]) ** 2 + (y - middle[1]) ** 2
                want = 15 * math.exp(-4 * squared / mask.sum()) * (1 if mask[y, x] else -1)
                assert got[y, x] == pytest.approx(want, rel=1e-5)
        assert got.max() == got[int(middle[1]), int(middle[0])] == 15


def test_likeness_by_a_loop_over_cells():
    rng = np.random.default_rng(0)
    for mask in random_masks()[:6]:
        embedding = rng.normal(size=(5, *SIZE)).astype(np.float32)  # a cell a pixel
        cells = {p: embedding[(slice(None), *p)] for p in np.ndindex(SIZE)}
        units = {p: cell / np.linalg.norm(cell) for p, cell in cells.items()}
        mean = sum(units[p] for p in np.ndindex(SIZE) if mask[p])
        cosines = {p: unit @ mean / np.linalg.norm(mean) for p, unit in units.items()}
        usual = np.mean([cosines[p] for p in np.ndindex(SIZE) if mask[p]])
        got = likeness(mask, unit_features(embedding))
        for p, cosine in cosines.items():
            assert got[p] == (cosine >= usual) or abs(cosine - usual) < 1e-5


def test_coarse_features_serve_an_image_of_any_size():
    mask = np.zeros((40, 60), bool)
    mask[8:32, 12:30] = True
    embedding = np.zeros((2, 5, 8), np.float32)
    embedding[0, :, :5], embedding[1, :, 5:] = 1, 1  # the left five of eight columns are alike
    alike = likeness(mask, unit_features(embedding))
    assert alike[:, :30].all() and not alike[:, 45:].any()


def slow_elastic_box(mask, alike, settings):
    """The box, side by side, strip by strip, pixel by pixel."""
    tight = [int(side) for side in mask_box(mask)]
    size = (tight[2] - tight[0], tight[3] - tight[1])
    limits, box = (0, 0, mask.shape[1], mask.shape[0]), list(tight)
    for side in range(4):
        axis, sign = side % 2, 1 if side > 1 else -1
        stride = max(1, round(settings.step * size[axis]))
        for _ in range(settings.steps):
            passed = []
            for k in range(stride):
                place = box[side] + sign * k - (sign < 0)
                if 0 <= place < limits[axis + 2]:
                    for other in range(tight[1 - axis], tight[3 - axis]):
                        passed.append(alike[other, place] if axis == 0 else alike[place, other])
            if not passed or np.mean(passed) < settings.share:
                break
            box[side] += sign * (len(passed) // size[1 - axis])
    return box


@pytest.mark.parametrize("settings", [SETTINGS, PromptSettings(step=0.3, steps=4, share=0.5)])
def test_elastic_boxes_by_a_loop(settings):
    rng = np.random.default_rng(1)
    grown = 0
    for mask in random_masks():
        alike = rng.random(SIZE) < rng.uniform(0, 0.9)
        got = elastic_box(mask, alike, settings)
        assert got.tolist() == slow_elastic_box(mask, alike, settings)
        grown += (got != mask_box(mask)).any()
    assert grown > 5


def test_without_features_each_side_moves_by_one_step():
    mask = np.zeros((50, 60), bool)
    mask[10:30, 2:42] = True
    prompts = mask_prompts(mask[None], frozenset({"boxes"}))
    np.testing.assert_array_equal(prompts.boxes, [[0, 8, 46, 32]])


class Asked(CombiningSegmenter):
    """It keeps what it is asked, and answers with an empty mask, a square, and half the square."""

    identity = "asked"

    def __init__(self, combines: set[str]):
        super().__init__()
        self.combines, self.asked = frozenset(combines), []

    def encode(self, image):
        self._hw = image.shape[:2]

    def embedding(self):
        return np.ones((3, 2, 2), np.float32)

    def draw_combined(self, prompts: PromptBatch, multimask: bool):
        self.asked.append(prompts)
        logits = torch.full((len(prompts), 3, *self._hw), -1.0)
        logits[:, 1, 4:8, 4:8] = 1
        logits[:, 2, 4:8, 4:6] = 1
        return logits, torch.tensor([[0.1, 0.9, 0.5]]).repeat(len(prompts), 1)


@pytest.mark.parametrize(
    "combines", [{"clicks"}, {"clicks", "boxes"}, {"clicks", "background", "boxes", "masks"}]
)
def test_a_segmenter_is_asked_by_the_parts_that_it_takes(combines):
    segmenter, masks = Asked(combines), np.stack(random_masks()[:5])
    masks[2] = False
    points = np.full((5, 2), 9.0)
    refined = refined_masks(segmenter, np.zeros((*SIZE, 3), np.uint8), masks, points, at_once=3)
    want = np.zeros(SIZE, bool)
    want[4:8, 4:8] = True  # of the highest predicted IoU
    np.testing.assert_array_equal(refined, np.stack([want] * 5))
    assert [len(asked) for asked in segmenter.asked] == [3, 1, 1]
    assert all(asked.parts == combines for asked in segmenter.asked[:2])
    clicks = segmenter.asked[0].clicks
    assert clicks.shape == (3, 2 if "background" in combines else 1, 2)
    assert clicks[0, 0].tolist() == list(inner_point(masks[0]))
    assert segmenter.asked[2].clicks.tolist() == [[[9.0, 9.0]]]  # the empty one, by its point


def test_masks_of_large_images_are_shown_in_crops_of_their_own():
    image = np.arange(60 * 90 * 3).reshape(60, 90, 3).astype(np.uint8)
    masks = np.zeros((3, 60, 90), bool)
    masks[0, 20:30, 40:50], masks[1, 0:8, 70:90] = True, True
    segmenter, shown = Asked({"clicks", "masks"}), []
    encode = segmenter.encode
    segmenter.encode = lambda image: (shown.append(image), encode(image))
    segmenter.crop_side = 90
    refined_masks(segmenter, image, masks, np.full((3, 2), 9.0))
    assert [part.shape[:2] for part in shown] == [(60, 90), (60, 90)]  # not larger than that
    del shown[:], segmenter.asked[:]
    segmenter.crop_side = 89
    refined = refined_masks(segmenter, image, masks, np.full((3, 2), 9.0))
    windows = [(slice(15, 35), slice(35, 55)), (slice(0, 24), slice(60, 90))]
    for part, window, mask, found, asked in zip(
        shown, windows, masks, refined, segmenter.asked, strict=False
    ):
        np.testing.assert_array_equal(part, image[window])
        assert asked.clicks[0, 0].tolist() == list(inner_point(mask[window]))
        want = np.zeros((60, 90), bool)
        want[window][4:8, 4:8] = True  # where the answer is in its crop
        np.testing.assert_array_equal(found, want)
    assert shown[2].shape == image.shape  # the empty mask's point


def test_tiny_sees_small_objects_of_large_images():
    """Discs of 14 pixels in an image of 480, which the network sees at a third of its size."""
    rng, tiny = np.random.default_rng(0), load_segmenter("tiny", device="cpu")
    image = rng.integers(110, 130, (480, 480, 3)).astype(np.uint8)
    y, x = np.indices((480, 480))
    true = np.stack([(x - 60 * n) ** 2 + (y - 60 * n - 9) ** 2 < 49 for n in range(1, 7)])
    image[true.any(axis=0)] = (210, 60, 50)
    rough = true & (x < np.array([60 * n + 3 for n in range(1, 7)])[:, None, None])
    figures = []
    for side in (None, tiny.crop_side):
        tiny.crop_side = side
        found = refined_masks(tiny, image, rough, np.zeros((6, 2)))
        figures.append(
            np.mean([(a & b).sum() / (a | b).sum() for a, b in zip(found, true, strict=True)])
        )
    assert figures[1] > max(figures[0], 0.8)


def test_parts_that_a_segmenter_does_not_take_are_refused():
    segmenter = Asked({"clicks"})
    segmenter.set_image(np.zeros((*SIZE, 3), np.uint8))
    with pytest.raises(ValueError, match="asked takes no boxes; prompts may combine clicks"):
        segmenter.combined(PromptBatch(clicks=np.zeros((1, 1, 2)), boxes=np.ones((1, 4))))
    segmenter = Asked({"masks"})
    segmenter.set_image(np.zeros((*SIZE, 3), np.uint8))
    with pytest.raises(ValueError, match="need one size"):
        segmenter.combined(PromptBatch(masks=np.zeros((1, 3, 3), np.float32)))


class ClicksAlone(BlockSegmenter):
    prompts = frozenset({"points"})
    identity = "clicks"


def test_segmenters_of_boxes_alone_are_asked_by_boxes():
    image, mask = picture(0, 40, 50), np.zeros((2, 40, 50), bool)
    mask[0, 10:20, 10:30] = True
    refined = refined_masks(BlockSegmenter(), image, mask, np.array([[20, 15], [30, 30]]))
    assert refined[0].sum() == 9 * 9 and refined[1].sum() == 17 * 17  # a box; a click
    grabcut, image[10:20, 10:30] = load_segmenter("grabcut"), (255, 0, 0)
    refined = refined_masks(grabcut, image, mask, np.zeros((2, 2)))
    assert refined[0].any() and not refined[1].any()  # an empty mask is no prompt for GrabCut
    require_boxes(grabcut)
    require_boxes(load_segmenter("tiny", device="cpu"))
    with pytest.raises(ValueError, match="clicks takes points only.*grabcut, tiny"):
        require_boxes(ClicksAlone())


def test_tiny_repairs_masks_that_lost_a_part():
    tiny, rng = load_segmenter("tiny", device="cpu"), np.random.default_rng(2)
    before, after = [], []
    for _ in range(5):
        scene = draw_scene(rng, 96)
        objects = scene.labels[1]
        for name in np.setdiff1d(objects, [0]):
            mask = objects == name
            middle = np.nonzero(mask)[1].mean()
            rough = mask & (np.arange(objects.shape[1]) < middle + 2)  # the right part is lost
            if mask.sum() > 150:
                (found,) = refined_masks(tiny, scene.image, rough[None], np.zeros((1, 2)))
                before.append((rough & mask).sum() / mask.sum())
                after.append((found & mask).sum() / (found | mask).sum())
    assert len(before) > 6 and np.mean(after) > np.mean(before) + 0.05
