"""Prompts on made-up network outputs: plain loops, flips, points that collide or fail."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adet.modeling.solov2 import PROMPTS
from adet.modeling.solov2.candidates import (
    point_candidates,
    sized_candidates,
    sized_candidates_with_scores,
)
from adet.modeling.solov2.grids import PyramidGrids
from adet.modeling.solov2.heads import SOLOv2InsHead, convolve_at
from adet.modeling.solov2.inference import InferenceSettings, segment
from adet.modeling.solov2.labels import InstanceLabels
from adet.modeling.solov2.predictions import Predictions
from detectron2.structures import Boxes, Instances

GRIDS = PyramidGrids(
    num_grids=(9, 6, 4), scale_ranges=((1, 24), (24, 48), (48, 999)), strides=(2, 2, 4), sigma=0.4
)
SETTINGS = InferenceSettings(nms_type="mask")
FRAME = (64, 96)


def make_head(seed=0, symmetric=False):
    """A head without coordinates; symmetric: mirrored inputs give mirrored outputs."""
    torch.manual_seed(seed)
    head = SOLOv2InsHead(
        **{"in_channels": 8, "channels": 32, "num_convs": 1, "num_classes": 3, "num_kernels": 5},
        num_grids=GRIDS.num_grids,
        use_coord_conv=False,
    )
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
        if symmetric and parameter.ndim == 4:
            parameter.data = (parameter.data + parameter.data.flip(-1)) / 2
    return head.eval()


def make_predictions(head, seed, images=2):
    generator = torch.Generator().manual_seed(seed)
    maps = [torch.randn(images, 8, s, s, generator=generator) for s in GRIDS.num_grids]
    features = torch.randn(images, 5, FRAME[0] // 4, FRAME[1] // 4, generator=generator)
    return Predictions(head, GRIDS, maps, features, [(60, 90)] * images, FRAME)


def make_labels(seed, count):
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(count, 2, dtype=torch.float64, generator=generator)
    points *= torch.tensor([90.0, 60.0])
    sizes = torch.rand(count, 2, generator=generator) * 60 + 2
    return InstanceLabels(torch.randint(0, 3, (count,), generator=generator), points, sizes)


def slow_points(batch, image, prompts):
    """(kernel, stride) of each point's best level, one query at a time; None where none."""
    head, output = batch.head, []
    for (x, y), label in zip(prompts.points_xy.tolist(), prompts.classes.tolist(), strict=True):
        best, best_score = None, 0.0
        for level, grid in enumerate(GRIDS.num_grids):
            column, row = int(x * grid / FRAME[1]), int(y * grid / FRAME[0])
            inputs = batch.grid_features[level][image : image + 1]
            kernel = head.kernel_pred(head.kernel_tower(inputs))[0, :, row, column]
            score = head.cate_pred(head.cate_tower(inputs))[0, label, row, column].sigmoid()
            feature = batch.mask_features[image]
            mask = torch.einsum("k,khw->hw", kernel, feature).sigmoid()
            inside = mask > 0.5
            if inside.any() and mask[inside].mean() * score > best_score:
                best_score = mask[inside].mean() * score
                best = (kernel, GRIDS.strides[level])
        output.append(best)
    return output


@pytest.mark.parametrize(
    ("name", "needed"),
    [
        ("none", set()),
        ("cls_image", {"gt_classes"}),
        ("point", {"gt_classes", "gt_points"}),
        ("cls", {"gt_classes", "gt_points", "gt_boxes"}),
        ("point_with_size", {"gt_classes", "gt_points", "gt_boxes"}),
    ],
)
def test_a_prompt_reads_the_labels_that_it_needs_and_no_others(name, needed):
    """Each needed field is missed where it is absent; no other one is looked at."""
    prompt = PROMPTS[name]
    device = torch.device("cpu")
    fields = {
        "gt_classes": torch.tensor([2]),
        "gt_points": torch.tensor([[20.0, 10.0]]),
        "gt_boxes": Boxes(torch.tensor([[10.0, 5.0, 30.0, 20.0]])),
    }
    enough = Instances((60, 90), **{key: fields[key] for key in needed})
    labels = prompt.read([{"instances": enough}], device)
    assert (labels is None) == (not needed)
    assert prompt.points_only == (bool(needed) and "gt_boxes" not in needed)
    for key in needed:
        less = Instances((60, 90), **{k: v for k, v in fields.items() if k != key})
        with pytest.raises(ValueError, match=f"PROMPT='{name}' needs {key}"):
            prompt.read([{"instances": less}], device)
    if needed:
        (labels,) = labels
        assert labels.classes.tolist() == [2]
        assert (labels.points_xy is not None) == ("gt_points" in needed)
        assert (labels.sizes_wh is not None) == ("gt_boxes" in needed)
        assert labels.sizes_wh is None or labels.sizes_wh.tolist() == [[20, 15]]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 6), st.integers(0, 6))
@torch.no_grad()
def test_point_prompt_equals_one_query_at_a_time(seed, first, second):
    batch = make_predictions(make_head(seed), seed)
    prompts = [make_labels(seed + i, count) for i, count in enumerate((first, second))]
    got = point_candidates(batch, prompts, SETTINGS)
    for image in range(2):
        want = slow_points(batch, image, prompts[image])
        found = [i for i, best in enumerate(want) if best is not None]
        assert got[image].prompts.tolist() == found
        assert got[image].refused == {i: "score_0" for i, best in enumerate(want) if best is None}
        assert got[image].scores.tolist() == [1.0] * len(found)
        assert torch.equal(got[image].classes, prompts[image].classes[found])
        assert GRIDS.strides_of(got[image].cells).tolist() == [want[i][1] for i in found]
        if found:
            kernels = torch.stack([want[i][0] for i in found])
            torch.testing.assert_close(got[image].kernels, kernels, rtol=1e-4, atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 6))
@torch.no_grad()
def test_sized_prompt_equals_plain_loops(seed, count):
    head, prompts = make_head(seed), make_labels(seed, count)
    batch = make_predictions(head, seed, images=1)
    want = []
    for n in range(count):
        (x, y), (w, h) = prompts.points_xy[n].tolist(), prompts.sizes_wh[n].tolist()
        for level, (grid, (low, high)) in enumerate(
            zip(GRIDS.num_grids, GRIDS.scale_ranges, strict=True)
        ):
            if not low <= (w * h) ** 0.5 < high:
                continue
            spans = []
            for c, size, frame in ((y, h, FRAME[0]), (x, w, FRAME[1])):
                half, cell = 0.5 * size * GRIDS.sigma, int(c * grid / frame)
                first = max(0, int((c - half) * grid // frame), cell - 1)
                last = min(grid - 1, int((c + half) * grid // frame), cell + 1)
                spans.append(range(first, last + 1))
            want += [(level, r * grid + c, n) for r in spans[0] for c in spans[1]]
    want.sort(key=lambda entry: (entry[0], entry[2]))
    (got,) = sized_candidates(batch, [prompts], SETTINGS)
    assert got.cells.tolist() == [GRIDS.offsets[level] + cell for level, cell, _ in want]
    assert got.prompts.tolist() == [n for _, _, n in want]
    kernels = [
        head.kernel_pred(head.kernel_tower(x)).flatten(2)[0] for x in batch.grid_features
    ]  # (K, S * S) a level
    for kernel, (level, cell, _) in zip(got.kernels, want, strict=True):
        torch.testing.assert_close(kernel, kernels[level][:, cell], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_sizes_run_the_category_branch_only_for_its_scores():
    head, prompts = make_head(), [make_labels(0, 5)]
    batch = make_predictions(head, 0, images=1)
    calls = []
    head.cate_tower.register_forward_hook(lambda *_: calls.append("cate"))
    sized_candidates(batch, prompts, SETTINGS)
    assert calls == []
    (got,) = sized_candidates_with_scores(batch, prompts, SETTINGS)
    assert calls == ["cate"] * 3
    assert ((got.scores >= 0) & (got.scores < 1)).all()


@torch.no_grad()
def test_points_in_one_cell_are_separate_queries():
    batch = make_predictions(make_head(), 3, images=1)
    points = torch.tensor([[40.0, 30.0], [40.5, 30.5], [40.0, 30.0]], dtype=torch.float64)
    prompts = InstanceLabels(torch.tensor([1, 1, 2]), points)
    (got,) = point_candidates(batch, [prompts], SETTINGS)
    assert got.prompts.tolist() == [0, 1, 2]
    free = InferenceSettings(nms_type="mask", prompt_nms=False)
    results, unmatched = segment(got, batch.mask_features[0], (60, 90), (60, 90), GRIDS, free)
    assert sorted(results.prompt_indices.tolist()) == [0, 1, 2] and unmatched == []
    results, unmatched = segment(got, batch.mask_features[0], (60, 90), (60, 90), GRIDS, SETTINGS)
    assert sorted(results.prompt_indices.tolist()) == [0, 2]
    assert unmatched == [{"instance": 1, "reason": "nms", "other": 0}]


@pytest.mark.parametrize("nms_type", ["mask", "matrix"])
@torch.no_grad()
def test_nms_of_prompts_off_keeps_one_mask_a_point(nms_type):
    """The best of each point's own masks, in plain loops; on: every lost point names a better one.

    The boxes span many cells, so that points have several candidates and share cells.
    """
    batch = make_predictions(make_head(7), 7, images=1)
    points = torch.tensor([[40.0, 30.0], [40.5, 30.5], [20.0, 40.0], [42.0, 31.0]]).double()
    prompts = InstanceLabels(torch.tensor([1, 1, 1, 2]), points, torch.full((4, 2), 40.0))
    (got,) = sized_candidates(batch, [prompts], SETTINGS)
    assert len(got) > len(got.prompts.unique())
    pixels = batch.mask_features[0].flatten(1)
    masks = torch.mm(got.kernels, pixels).sigmoid()
    inside = masks > 0.5
    quality = (masks * inside).sum(dim=1) / inside.sum(dim=1).clamp(min=1)
    large = inside.sum(dim=1) > GRIDS.strides_of(got.cells)
    want = {}
    for owner, score in zip(got.prompts[large].tolist(), quality[large].tolist(), strict=True):
        want[owner] = max(score, want.get(owner, 0))
    arguments = (got, batch.mask_features[0], (60, 90), (60, 90), GRIDS)
    free, unmatched = segment(*arguments, InferenceSettings(nms_type=nms_type, prompt_nms=False))
    found = dict(zip(free.prompt_indices.tolist(), free.scores.tolist(), strict=True))
    assert len(found) == len(free) and unmatched == []
    assert found == pytest.approx(want, abs=1e-5)
    strict = InferenceSettings(nms_type=nms_type, update_thr=0.5)
    results, unmatched = segment(*arguments, strict)
    assert unmatched and not set(results.prompt_indices.tolist()) & {
        item["instance"] for item in unmatched
    }
    for item in unmatched:
        one, other = item["instance"], item["other"]
        assert item["reason"] == "nms" and prompts.classes[one] == prompts.classes[other]
        assert want[other] >= want[one]
        assert nms_type == "matrix" or other in results.prompt_indices.tolist()


@torch.no_grad()
def test_flipped_images_and_points_give_flipped_masks():
    prompts = [make_labels(i, 4) for i in range(2)]
    batch = make_predictions(make_head(symmetric=True), 5)
    batch = dataclasses.replace(batch, image_sizes_hw=[FRAME] * 2)
    mirrored = dataclasses.replace(
        batch,
        grid_features=[x.flip(-1) for x in batch.grid_features],
        mask_features=batch.mask_features.flip(-1),
    )
    mirrored_prompts = [
        InstanceLabels(p.classes, p.points_xy * torch.tensor([-1, 1]) + torch.tensor([96, 0]))
        for p in prompts
    ]
    for before, after, features in zip(
        point_candidates(batch, prompts, SETTINGS),
        point_candidates(mirrored, mirrored_prompts, SETTINGS),
        batch.mask_features,
        strict=True,
    ):
        one, _ = segment(before, features, FRAME, (128, 150), GRIDS, SETTINGS)
        two, _ = segment(after, features.flip(-1), FRAME, (128, 150), GRIDS, SETTINGS)
        assert one.prompt_indices.tolist() == two.prompt_indices.tolist()
        assert (one.pred_masks ^ two.pred_masks.flip(-1)).float().mean() < 1e-3


@torch.no_grad()
def test_reasons_of_points_without_a_mask():
    batch = make_predictions(make_head(), 0, images=1)
    nan = float("nan")
    points = [[40, 30], [nan, nan], [95, 30], [10, 61], [90, 60]]  # the image is 90 x 60
    prompts = InstanceLabels(
        torch.zeros(5, dtype=torch.int64),
        torch.tensor(points, dtype=torch.float64),
        torch.tensor([[0.0, 0.0], [9, 9], [9, 9], [9, 9], [9, 9]]),
    )
    (got,) = point_candidates(batch, [prompts], SETTINGS)
    refused = {1: "no_point", 2: "outside", 3: "outside"}
    assert got.prompts.tolist() == [0, 4] and got.refused == refused
    (got,) = sized_candidates(batch, [prompts], SETTINGS)
    assert set(got.prompts.tolist()) == {4} and got.refused == refused | {0: "size"}
    strict = InferenceSettings(mask_thr=1.0)
    (got,) = point_candidates(batch, [prompts], strict)
    assert got.refused == {0: "score_0", 4: "score_0"} | refused
    assert len(got) == 0


@pytest.mark.parametrize("name", ["none", "point", "point_with_size", "cls"])
@torch.no_grad()
def test_prompts_under_autocast_follow_the_labels_in_float32(name):
    """Candidates are float32, and masks differ from those without autocast by few pixels."""
    batch, prompts = make_predictions(make_head(4), 4, images=1), [make_labels(4, 6)]
    (want,) = PROMPTS[name].choose(batch, prompts if name != "none" else None, SETTINGS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (got,) = PROMPTS[name].choose(batch, prompts if name != "none" else None, SETTINGS)
        results, _ = segment(got, batch.mask_features[0], (60, 90), (60, 90), GRIDS, SETTINGS)
    assert got.kernels.dtype == got.scores.dtype == results.scores.dtype == torch.float32
    assert len(results)
    if name in ("point", "point_with_size"):  # the other two turn on comparisons of scores
        assert got.prompts.tolist() == want.prompts.tolist()
        error = (got.kernels - want.kernels).norm() / want.kernels.norm()
        assert error < 0.03


def test_a_convolution_at_some_cells_equals_the_whole_map():
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(6, 4, 3, padding=1)
    maps = torch.randn(3, 6, 7, 7)
    images, cells = torch.randint(0, 3, (40,)), torch.randint(0, 49, (40,))
    want = conv(maps).flatten(2)[images, :, cells]
    torch.testing.assert_close(convolve_at(conv, maps, images, cells), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reason", ["area", "nms_pre", "max_per_img"])
@torch.no_grad()
def test_reasons_of_dropped_candidates(reason):
    batch = make_predictions(make_head(), 2, images=1)
    (candidates,) = point_candidates(batch, [make_labels(2, 6)], SETTINGS)
    grids, values = GRIDS, {"nms_pre": 500, "max_per_img": 100, "prompt_nms": False}
    if reason == "area":
        grids = PyramidGrids(GRIDS.num_grids, GRIDS.scale_ranges, (9999,) * 3, 0.4)
    else:
        values[reason] = 2
    results, unmatched = segment(
        candidates, batch.mask_features[0], (60, 90), (60, 90), grids, InferenceSettings(**values)
    )
    assert len(results) == (0 if reason == "area" else 2)
    assert [u["reason"] for u in unmatched] == [reason] * (6 - len(results))
    assert not set(results.prompt_indices.tolist()) & {u["instance"] for u in unmatched}
