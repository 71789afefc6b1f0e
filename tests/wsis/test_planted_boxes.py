"""Pseudo boxes of which a known share is wrong."""

import numpy as np

from wsis.benchmarks.planted_boxes import MOST_OVERLAP, overlaps, plant


def annotations(rng: np.random.Generator, images: int, each: int) -> list[dict]:
    boxes = rng.integers(5, 30, (images * each, 4))
    return [
        {"id": i + 1, "image_id": i // each, "category_id": i % 3, "bbox": box.tolist()}
        for i, box in enumerate(boxes)
    ]


def test_the_share_of_boxes_is_moved_off_all_objects_and_keeps_class_and_size():
    rng = np.random.default_rng(0)
    images = [{"id": i, "width": 100, "height": 80} for i in range(20)]
    labels = {"images": images, "annotations": annotations(rng, 20, 3)}
    truth = {"images": images, "annotations": annotations(rng, 20, 4)}
    planted, moved = plant(labels, truth, 0.3, seed=1)
    pairs = list(zip(labels["annotations"], planted["annotations"], strict=True))
    changed = [new for old, new in pairs if old != new]
    assert len(changed) == moved == 18
    for old, new in pairs:
        assert {**old, "bbox": 0} == {**new, "bbox": 0}
        assert old["bbox"][2:] == new["bbox"][2:]
    for new in changed:
        x, y, width, height = new["bbox"]
        assert min(x, y) >= 0
        assert x + width <= 100
        assert y + height <= 80
        own = [a["bbox"] for a in truth["annotations"] if a["image_id"] == new["image_id"]]
        assert overlaps(np.array(new["bbox"]), np.array(own)).max() < MOST_OVERLAP
    assert plant(labels, truth, 0.3, seed=1) == (planted, moved)


def test_overlaps_equal_counting_pixels():
    box = np.array([2, 3, 10, 6])
    others = np.array([[2, 3, 10, 6], [5, 5, 10, 10], [20, 20, 3, 3], [4, 4, 2, 2]])
    grids = np.zeros((5, 40, 40), bool)
    for grid, (x, y, w, h) in zip(grids, [box, *others], strict=True):
        grid[y : y + h, x : x + w] = True
    wanted = [(grids[0] & g).sum() / (grids[0] | g).sum() for g in grids[1:]]
    assert np.allclose(overlaps(box, others), wanted)
