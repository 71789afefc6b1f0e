"""Checkpoints of DINO: mmdetection's names both ways, and its files."""

import collections
import sys
import types

import numpy as np
import pytest
import torch

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import META_ARCH_REGISTRY
from tests.weaksam.dino_samples import make_input, shaken_dino, small_dino
from weaksam.dino.names import from_mmdetection, is_mmdetection, to_mmdetection
from wsis.config import load_config

pytest.importorskip("transformers")  # the extra [sam]


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
