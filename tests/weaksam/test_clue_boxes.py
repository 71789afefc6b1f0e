"""One box for each class map: the largest region, resume, and refusals."""

import json

import numpy as np
import pytest
import torch

from tests.weaksam.scenes import make_dataset
from tests.weaksam.test_training import small
from weaksam.clues.boxes import BoxSettings, extract_boxes, largest_region
from weaksam.clues.extract import PointSettings

ONE_PASS = PointSettings(sources=("coarse",), scales=(1.0,), flip=False)


def regions_by_hand(mask):
    """Pixels of each 8-connected region, by flood filling."""
    left, found = {tuple(p) for p in np.argwhere(mask)}, []
    while left:
        region, border = set(), {left.pop()}
        while border:
            y, x = border.pop()
            region.add((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            border |= near
        found.append(region)
    return found


@pytest.mark.parametrize("seed", range(4))
def test_the_box_is_that_of_the_largest_region(seed):
    mask = np.random.default_rng(seed).random((14, 17)) < 0.3
    regions = regions_by_hand(mask)
    most = max(map(len, regions))
    boxes = []
    for region in regions:
        if len(region) == most:
            ys, xs = zip(*region, strict=True)
            boxes.append([min(xs), min(ys), max(xs) - min(xs) + 1, max(ys) - min(ys) + 1])
    assert largest_region(mask) in boxes
    assert largest_region(np.zeros((3, 3), bool)) is None


def test_each_tag_has_a_box_around_its_map(tmp_path):
    dataset, _ = make_dataset(tmp_path / "data", 3)
    torch.manual_seed(0)
    model = small().eval()
    output = tmp_path / "boxes.json"
    extract_boxes(model, dataset, output, BoxSettings(ONE_PASS, 0.5))
    rows = json.loads(output.read_text())
    wanted = [
        (e["image_id"], dataset.tags.categories[i][0])
        for e in dataset.dicts
        for i in e["image_labels"]
    ]
    assert [(row["image_id"], row["category_id"]) for row in rows] == wanted
    sizes = {e["image_id"]: (e["width"], e["height"]) for e in dataset.dicts}
    for row in rows:
        x, y, width, height = row["bbox"]
        assert x + width <= sizes[row["image_id"]][0] and y + height <= sizes[row["image_id"]][1]
        assert 0 <= row["score"] <= 1
    before = output.stat().st_mtime_ns
    extract_boxes(model, dataset, output, BoxSettings(ONE_PASS, 0.5))
    assert output.stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="boxes made with other settings"):
        extract_boxes(model, dataset, output, BoxSettings(ONE_PASS, 0.4))


def test_thresholds_and_maps_are_checked():
    with pytest.raises(ValueError, match="between 0 and 1"):
        BoxSettings(ONE_PASS, 1.0)
    with pytest.raises(ValueError, match="coarse maps"):
        BoxSettings(PointSettings(sources=("fine",)))
