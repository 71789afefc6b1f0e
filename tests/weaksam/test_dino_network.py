"""The whole DINO: queries, refinement, frames of results, training."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from detectron2.modeling import meta_architecture
from detectron2.modeling.test_time_augmentation import DatasetMapperTTA
from detectron2.structures import BoxMode
from detectron2.utils.events import EventStorage
from tests.weaksam.dino_samples import (
    make_input,
    random_maps,
    random_targets,
    shaken_dino,
    small_config,
    small_dino,
)
from weaksam.dino.data import leave_out_small
from weaksam.dino.detector import detections
from weaksam.dino.selection import BASE_SIZE, place_boxes, select_queries
from weaksam.dino.tta import DinoWithTTA

pytest.importorskip("transformers")  # the extra [sam]


def losses_of(model, batch, iteration: int = 0, seed: int = 0):
    torch.manual_seed(seed)  # of the noise
    with EventStorage(iteration):
        return model.train()(batch)


# Queries


def test_places_start_from_a_box_around_themselves():
    maps = random_maps(dim=16, levels=2)  # 8 x 12 and 4 x 6; the second image is 4 x 8 of 8 x 12
    logits, is_used = place_boxes(maps)
    boxes = logits.sigmoid()
    first = torch.tensor([0.5 / 12, 0.5 / 8, BASE_SIZE, BASE_SIZE])
    torch.testing.assert_close(boxes[0, 0], first)
    second_level = torch.tensor([1.5 / 4, 0.5 / 2, 2 * BASE_SIZE, 2 * BASE_SIZE])
    torch.testing.assert_close(boxes[1, 96 + 1], second_level)
    assert is_used[0].all() and is_used[1].sum() == 4 * 8 + 2 * 4
    assert not is_used[1][maps.is_padding[1]].any()
    assert (boxes[1][~is_used[1]] == 1).all()


def test_the_best_places_become_queries():
    logits = torch.tensor([[[0.0, 1.0], [3.0, -1.0], [2.0, 2.5], [-1.0, -2.0]]])
    boxes = torch.arange(16.0).view(1, 4, 4)
    got = select_queries(logits, boxes, 2)
    assert got.logits.tolist() == [[[3.0, -1.0], [2.0, 2.5]]]
    assert got.boxes[0, :, 0].tolist() == [4.0, 8.0]
    assert select_queries(logits, boxes, 900).boxes.shape == (1, 4, 4)  # a very small image


def decoded(model, changed_query: int | None = None):
    """Logits and boxes of 10 queries, of which one may have another content."""
    torch.manual_seed(1)
    maps = random_maps(dim=32, levels=4)
    content, starts = torch.randn(2, 10, 32), 0.1 + 0.5 * torch.rand(2, 10, 4)
    if changed_query is not None:
        content[:, changed_query] += 1
    is_hidden = torch.zeros(10, 10, dtype=torch.bool)
    is_hidden[4:, :4] = True  # 0 to 3: two groups of two denoising queries
    is_hidden[0:2, 2:4], is_hidden[2:4, 0:2] = True, True
    with torch.no_grad():
        return model.decode(maps, content, starts, is_hidden)


def test_denoising_groups_are_seen_by_nobody_else():
    model = shaken_dino().eval()
    before, after = decoded(model), decoded(model, changed_query=1)
    for old, new in zip(before, after, strict=True):
        same = (old == new).all(dim=-1).all(dim=0).all(dim=0)
        assert same.tolist() == [False, False, *[True] * 8]
    seen = decoded(model, changed_query=5)[0]  # a matching query
    assert (seen != before[0]).any(dim=-1).all()


def test_boxes_look_forward_twice():
    """A layer's boxes move its own branch and the one before it, and no earlier one."""
    layers = 4
    model = shaken_dino(MODEL__DINO__DEC_LAYERS=layers)
    maps = random_maps(dim=32, levels=4)
    content, starts = torch.randn(2, 10, 32), 0.1 + 0.5 * torch.rand(2, 10, 4)
    _, boxes = model.decode(maps, content, starts)
    branches = model.bbox_head.reg_branches
    for k in range(layers):
        model.zero_grad()
        boxes[k].sum().backward(retain_graph=True)
        moved = [j for j in range(layers) if branches[j][0].weight.grad is not None]
        moved = [j for j in moved if branches[j][0].weight.grad.any()]
        assert moved == [j for j in (k - 1, k) if j >= 0]


# Results


def test_detections_are_the_best_pairs_in_pixels():
    logits = torch.tensor([[2.0, -1.0], [0.0, 3.0]])
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.4], [0.1, 0.2, 0.4, 0.2]])
    got = detections(logits, boxes, (50, 100), max_detections=3)
    torch.testing.assert_close(got.scores, torch.tensor([3.0, 2.0, 0.0]).sigmoid())
    assert got.pred_classes.tolist() == [1, 0, 0]
    want = [[0, 5, 30, 15], [40, 15, 60, 35], [0, 5, 30, 15]]  # clipped at the left
    torch.testing.assert_close(got.pred_boxes.tensor, torch.tensor(want, dtype=torch.float32))


def test_results_are_in_the_frame_of_the_output():
    model = shaken_dino().eval()
    inputs = make_input(0, 64, 96)
    with torch.no_grad():
        (own,), (larger,) = model([inputs]), model([inputs | {"height": 128, "width": 288}])
    own, larger = own["instances"], larger["instances"]
    assert larger.image_size == (128, 288) and len(own) == len(larger) > 0
    scale = torch.tensor([3.0, 2.0, 3.0, 2.0])
    torch.testing.assert_close(larger.pred_boxes.tensor, own.pred_boxes.tensor * scale)


def test_versions_of_an_image_are_joined_by_nms():
    cfg = small_config(TEST__AUG__MIN_SIZES="(80, 96)", MODEL__DINO__NMS_THRESH_TTA=0.3)
    model = shaken_dino().eval()
    inputs = make_input(1, 80, 80)
    (got,) = meta_architecture(cfg).with_tta(cfg, model)([inputs])
    got = got["instances"]
    assert got.image_size == (80, 80) and len(got) > 0
    assert (got.scores.diff() <= 0).all()
    boxes, scores = [], []
    for version in DatasetMapperTTA(cfg)(inputs):
        back = version.pop("transforms").inverse()
        with torch.no_grad():
            (own,) = model.inference([version], do_postprocess=False)
        boxes.append(torch.from_numpy(back.apply_box(own.pred_boxes.tensor.numpy())))
        scores.append(own.scores)
    assert len(boxes) == 4
    boxes, scores = torch.cat(boxes).float().clamp(0, 80), torch.cat(scores)
    for box, score in zip(got.pred_boxes.tensor, got.scores, strict=True):
        is_source = ((boxes - box).abs() < 1e-3).all(dim=1) & ((scores - score).abs() < 1e-6)
        assert is_source.any()
    best = scores.max()
    assert got.scores[0] == best


def test_one_version_is_plain_inference_after_nms():
    changes = {"TEST__AUG__FLIP": False, "TEST__AUG__MIN_SIZES": "(80,)"}
    cfg = small_config(MODEL__DINO__NMS_THRESH_TTA=1.0, **changes)
    model = shaken_dino().eval()
    inputs = make_input(1, 80, 80)
    inputs["image"] = inputs["image"].to(torch.uint8)
    (got,) = DinoWithTTA(cfg, model)([inputs])
    with torch.no_grad():
        (want,) = model([inputs])
    torch.testing.assert_close(
        got["instances"].pred_boxes.tensor, want["instances"].pred_boxes.tensor
    )


def test_other_merges_and_thresholds_are_refused():
    cfg = small_config(TEST__AUG__MERGE="average")
    with pytest.raises(ValueError, match="set it to 'union'"):
        meta_architecture(cfg).check_tta(cfg)
    cfg = small_config(MODEL__DINO__NMS_THRESH_TTA=60.0)
    with pytest.raises(ValueError, match="NMS_THRESH_TTA=60.0"):
        meta_architecture(cfg).check_tta(cfg)


# Training


def test_a_few_images_are_learned():
    model = small_dino(MODEL__DINO__DEC_LAYERS=1).train()
    batch = [make_input(0), make_input(1, 48, 64)]
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    totals = []
    for _ in range(40):
        losses = losses_of(model, batch)
        total = sum(losses.values())
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        totals.append(losses["loss_cls"].item() + losses["loss_bbox"].item())
    assert totals[-1] < 0.3 * totals[0]


def test_every_weight_has_a_gradient():
    model = shaken_dino()
    for batch in ([make_input(0), make_input(1)], [make_input(2, count=0)] * 2):
        model.zero_grad()
        losses = losses_of(model, batch)
        assert len(losses) == 12 and all(torch.isfinite(v) for v in losses.values())
        sum(losses.values()).backward()
        without = [name for name, p in model.named_parameters() if p.grad is None]
        assert not without


def test_drop_starts_at_its_iteration_and_leaves_denoising_alone():
    drop = {
        "MODEL__DINO__INSTANCE_DROP__ISON": True,
        "MODEL__DINO__INSTANCE_DROP__QUANTILE": 0.5,
        "MODEL__DINO__INSTANCE_DROP__OPERATE_ITER": 7,
    }
    batch = [make_input(0), make_input(1)]
    plain, dropping = small_dino(), small_dino(**drop)
    want = losses_of(plain, batch)
    before = losses_of(dropping, batch, iteration=6)
    assert all(torch.equal(before[name], value) for name, value in want.items())
    after = losses_of(small_dino(**drop), batch, iteration=7)
    for name, value in want.items():
        assert torch.equal(after[name], value) if name.endswith("_dn") else after[name] < value


def test_dropped_labels_are_counted():
    changes = {
        "MODEL__DINO__INSTANCE_DROP__ISON": True,
        "MODEL__DINO__INSTANCE_DROP__QUANTILE": 0.25,
    }
    model = small_dino(**changes).train()
    with EventStorage(0) as storage:
        model([make_input(i) for i in range(4)])
        assert storage.latest()["dino/dropped"][0] == 2  # of 8


def test_a_share_above_one_is_refused():
    with pytest.raises(ValueError, match="INSTANCE_DROP.QUANTILE=1.5"):
        small_dino(MODEL__DINO__INSTANCE_DROP__ISON=True, MODEL__DINO__INSTANCE_DROP__QUANTILE=1.5)


def test_half_precision_comes_near():
    model = shaken_dino()
    batch = [make_input(0), make_input(1)]
    want = losses_of(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        got = losses_of(model, batch)
    for name, value in want.items():
        assert got[name].dtype == torch.float32
        assert got[name].item() == pytest.approx(value.item(), rel=0.2, abs=0.05)


def record(boxes, height=100, width=100):
    annotations = [{"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0} for box in boxes]
    return {"height": height, "width": width, "annotations": annotations, "file_name": "a.jpg"}


def test_small_images_and_boxes_are_left_out(caplog):
    records = [
        record([[0, 0, 40, 40], [0, 0, 31, 50]]),
        record([[0, 0, 31, 50]]),
        record([[0, 0, 40, 40]], width=31),
        record([]),
    ]
    with caplog.at_level("INFO"):
        got = leave_out_small(records, 32, 32)
    assert [len(r["annotations"]) for r in got] == [1, 0]
    assert len(records[0]["annotations"]) == 2
    assert "2 of 4 images" in caplog.text and "2 boxes" in caplog.text
    with pytest.raises(ValueError, match="MIN_BOX_SIDE"):
        leave_out_small(records[:1], 32, 99)
    del records[0]["annotations"][0]["bbox"]
    with pytest.raises(ValueError, match="a.jpg has an annotation without a bbox"):
        leave_out_small(records, 32, 32)


def test_few_places_and_many_labels_are_no_error():
    """Fewer places on the maps than queries; more labels than queries."""
    model = small_dino(MODEL__DINO__NUM_QUERIES=500)
    losses = losses_of(model, [make_input(0, 40, 40), make_input(1, 32, 40)])
    assert all(torch.isfinite(v) for v in losses.values())
    targets = random_targets(0, (30, 0), 3)
    maps = random_maps(dim=32, levels=4)
    model = small_dino(MODEL__DINO__NUM_QUERIES=5)
    with EventStorage(0):
        losses = model.losses(maps, model.select(maps), targets)
    assert all(torch.isfinite(v) for v in losses.values())


def train_steps(tmp_path, processes: int, denoising: int) -> list[dict]:
    """What each process prints."""
    program, store = Path(__file__).with_name("train_dino_steps.py"), tmp_path / f"{processes}"
    commands = [
        [sys.executable, program, store, *map(str, (processes, rank, denoising))]
        for rank in range(processes)
    ]
    running = [subprocess.Popen(c, stdout=subprocess.PIPE, text=True) for c in commands]
    output = [process.communicate(timeout=120)[0] for process in running]
    assert all(process.returncode == 0 for process in running)
    return [json.loads(text) for text in output]


@pytest.mark.slow
def test_two_processes_train_like_one(tmp_path):
    """Without denoising, whose noise depends on the batch; one process has no label."""
    (one,), two = (train_steps(tmp_path, processes, denoising=0) for processes in (1, 2))
    mean = np.mean([r["losses"] for r in two], axis=0)
    np.testing.assert_allclose(mean, one["losses"], rtol=1e-4, atol=1e-6)
    assert two[0]["weights"] == two[1]["weights"]
    np.testing.assert_allclose(two[0]["weights"], one["weights"], rtol=1e-4)


@pytest.mark.slow
def test_a_process_without_labels_trains_beside_one_that_denoises(tmp_path):
    one, other = train_steps(tmp_path, processes=2, denoising=6)
    assert one["weights"] == other["weights"]
    assert one["losses"][0][-1] > 0 and other["losses"][0][-1] == 0
