"""The whole DINO: queries, refinement, frames of results, training, checkpoints."""

import collections
import sys
import types

import numpy as np
import pytest
import torch

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import meta_architecture
from detectron2.modeling.test_time_augmentation import DatasetMapperTTA
from detectron2.structures import BoxMode
from detectron2.utils.events import EventStorage
from tests.weaksam.dino_samples import (
    make_input,
    random_maps,
    random_targets,
    small_config,
    small_dino,
)
from weaksam.dino.data import leave_out_small
from weaksam.dino.detector import detections
from weaksam.dino.names import from_mmdetection, is_mmdetection, to_mmdetection
from weaksam.dino.selection import BASE_SIZE, place_boxes, select_queries
from weaksam.dino.tta import DinoWithTTA


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


def shaken_dino(**changes):
    """Random boxes and samples: at the start the last layers are 0."""
    model = small_dino(**changes)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "reg_branches" in name or "sampling_offsets" in name:
                parameter.normal_(std=0.2)
    return model


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


def test_other_merges_are_refused():
    cfg = small_config(TEST__AUG__MERGE="average")
    with pytest.raises(ValueError, match="set it to 'union'"):
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


# Checkpoints


def mmdetection_shapes(num_classes: int = 80) -> dict[str, tuple[int, ...]]:
    """Names and shapes of DINO with four scales on ResNet-50 in mmdetection 3.1."""
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, out_channels: int, in_channels: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (
            (out_channels, in_channels),
            (out_channels,),
        )

    def norm(name: str, channels: int, is_batch: bool = False) -> None:
        kinds = ["weight", "bias", *(["running_mean", "running_var"] if is_batch else [])]
        shapes.update({f"{name}.{kind}": (channels,) for kind in kinds})
        if is_batch:
            shapes[f"{name}.num_batches_tracked"] = ()

    shapes["backbone.conv1.weight"] = (64, 3, 7, 7)
    norm("backbone.bn1", 64, True)
    channels = 64
    for stage, count in enumerate((3, 4, 6, 3), start=1):
        width = 32 * 2**stage
        for i in range(count):
            name = f"backbone.layer{stage}.{i}"
            own = ((width, channels, 1), (width, width, 3), (4 * width, width, 1))
            for j, (out_channels, in_channels, kernel) in enumerate(own, start=1):
                shapes[f"{name}.conv{j}.weight"] = (out_channels, in_channels, kernel, kernel)
                norm(f"{name}.bn{j}", out_channels, True)
            if i == 0:
                shapes[f"{name}.downsample.0.weight"] = (4 * width, channels, 1, 1)
                norm(f"{name}.downsample.1", 4 * width, True)
            channels = 4 * width
    necks = [("convs.0", 512, 1), ("convs.1", 1024, 1), ("convs.2", 2048, 1)]
    for name, in_channels, kernel in [*necks, ("extra_convs.0", 2048, 3)]:
        shapes[f"neck.{name}.conv.weight"] = (256, in_channels, kernel, kernel)
        norm(f"neck.{name}.gn", 256)
    for part, attention, norms in (("encoder", "self_attn", 2), ("decoder", "cross_attn", 3)):
        for i in range(6):
            name = f"{part}.layers.{i}"
            linear(f"{name}.{attention}.sampling_offsets", 8 * 4 * 4 * 2, 256)
            linear(f"{name}.{attention}.attention_weights", 8 * 4 * 4, 256)
            linear(f"{name}.{attention}.value_proj", 256, 256)
            linear(f"{name}.{attention}.output_proj", 256, 256)
            linear(f"{name}.ffn.layers.0.0", 2048, 256)
            linear(f"{name}.ffn.layers.1", 256, 2048)
            for j in range(norms):
                norm(f"{name}.norms.{j}", 256)
            if part == "decoder":
                shapes[f"{name}.self_attn.attn.in_proj_weight"] = (768, 256)
                shapes[f"{name}.self_attn.attn.in_proj_bias"] = (768,)
                linear(f"{name}.self_attn.attn.out_proj", 256, 256)
    linear("decoder.ref_point_head.layers.0", 256, 512)
    linear("decoder.ref_point_head.layers.1", 256, 256)
    norm("decoder.norm", 256)
    for i in range(7):
        linear(f"bbox_head.cls_branches.{i}", num_classes, 256)
        for j, out_channels in ((0, 256), (2, 256), (4, 4)):
            linear(f"bbox_head.reg_branches.{i}.{j}", out_channels, 256)
    linear("memory_trans_fc", 256, 256)
    norm("memory_trans_norm", 256)
    shapes["query_embedding.weight"] = (900, 256)
    shapes["dn_query_generator.label_embedding.weight"] = (num_classes, 256)
    shapes["level_embed"] = (4, 256)
    return shapes


def full_size_dino():
    """The published network, without memory for its weights."""
    from detectron2.modeling import META_ARCH_REGISTRY
    from wsis.config import load_config

    cfg = load_config("WeakSAM/dino_coco.yaml", ["MODEL.DEVICE", "cpu"])
    with torch.device("meta"):
        return META_ARCH_REGISTRY.get("DINO")(cfg)


def test_names_and_shapes_are_mmdetection_s():
    model = full_size_dino()
    got = {name: tuple(v.shape) for name, v in to_mmdetection(model.state_dict()).items()}
    assert got == mmdetection_shapes()
    # The paper: 47 million parameters, the frozen batch norms and all.
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(47.6, abs=0.3)


@pytest.mark.parametrize("norm", ["BN", "FrozenBN"])
def test_names_convert_both_ways(norm: str):
    weights = small_dino(MODEL__RESNETS__NORM=norm).state_dict()
    converted = to_mmdetection(weights)
    assert is_mmdetection(converted) and not is_mmdetection(weights)
    back = from_mmdetection(converted)
    own = {name: v for name, v in weights.items() if not name.endswith("num_batches_tracked")}
    assert back.keys() == own.keys()
    assert all(torch.equal(back[name], value) for name, value in own.items())


def save_as_mmdetection(model, path, monkeypatch):
    """A file as mmengine writes it during a training, with the history of the losses."""
    module = types.ModuleType("mmengine.logging.history_buffer")
    exec(HISTORY, module.__dict__)
    for name in ("mmengine", "mmengine.logging"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    history = module.HistoryBuffer()
    history.log = np.array([1.5, 0.5])
    torch.save(
        {
            "meta": {"epoch": 12, "dataset_meta": {"classes": ("a", "b", "c")}},
            "state_dict": collections.OrderedDict(to_mmdetection(model.state_dict())),
            "message_hub": {"log_scalars": collections.OrderedDict(loss=history)},
            "optimizer": {"state": {}, "param_groups": []},
        },
        path,
    )
    for name in ("mmengine", "mmengine.logging", module.__name__):
        monkeypatch.delitem(sys.modules, name)


HISTORY = """
class HistoryBuffer:
    def mean(self): raise RuntimeError("code of the file ran")
    def __getstate__(self): return self.__dict__ | {"statistics": {"mean": HistoryBuffer.mean}}
    def __setstate__(self, state): raise RuntimeError("code of the file ran")
"""


def test_a_checkpoint_of_mmdetection_loads(tmp_path, monkeypatch):
    source = shaken_dino(seed=3, MODEL__RESNETS__NORM="FrozenBN")
    model = small_dino(seed=4, MODEL__RESNETS__NORM="FrozenBN")
    path = tmp_path / "epoch_12.pth"
    save_as_mmdetection(source, path, monkeypatch)
    checkpointer = DetectionCheckpointer(model)
    checkpointer.load(str(path))
    assert checkpointer.load_report.is_complete
    with torch.no_grad():
        got, want = (m.eval()([make_input(0, 80, 80)]) for m in (model, source))
    assert torch.equal(got[0]["instances"].scores, want[0]["instances"].scores)


def test_our_own_checkpoint_loads_as_it_is(tmp_path):
    model = small_dino(seed=3)
    DetectionCheckpointer(model, str(tmp_path)).save("model")
    other = small_dino(seed=4)
    checkpointer = DetectionCheckpointer(other)
    checkpointer.load(str(tmp_path / "model.pth"))
    assert checkpointer.load_report.is_complete
    assert torch.equal(model.level_embed, other.level_embed)


def test_labels_without_a_size_do_not_break_the_batch():
    """More labels than queries, and an image smaller than the number of queries."""
    model = small_dino(MODEL__DINO__NUM_QUERIES=500)
    losses = losses_of(model, [make_input(0, 40, 40), make_input(1, 32, 40)])
    assert all(torch.isfinite(v) for v in losses.values())
    targets = random_targets(0, (30, 0), 3)
    maps = random_maps(dim=32, levels=4)
    model = small_dino(MODEL__DINO__NUM_QUERIES=5)
    with EventStorage(0):
        losses = model.losses(maps, model.select(maps), targets)
    assert all(torch.isfinite(v) for v in losses.values())
