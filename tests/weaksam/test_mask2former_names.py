"""Checkpoints of Mask2Former have the original project's names, in both directions."""

import pickle

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra [sam]")

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from detectron2.modeling.backbone import build_backbone
from tests.weaksam.small_mask2former import build, make_input, small_config
from weaksam.mask2former.names import original_name

pytestmark = pytest.mark.usefixtures("one_thread")


def original_shapes(cfg) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the original's tensors outside of the backbone, from its module tree."""
    head, node = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER
    pixels, masks, hidden = head.CONVS_DIM, head.MASK_DIM, node.HIDDEN_DIM
    shapes = {}

    def linear(name, inputs, outputs):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (outputs, inputs), (outputs,)

    def norm(name, channels):
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (channels,)

    def attention(name):
        shapes[f"{name}.in_proj_weight"] = (3 * hidden, hidden)
        shapes[f"{name}.in_proj_bias"] = (3 * hidden,)
        linear(f"{name}.out_proj", hidden, hidden)

    decoder = "sem_seg_head.pixel_decoder"
    channels = {name: own.channels for name, own in build_backbone(cfg).output_shape().items()}
    for i, name in enumerate(("res5", "res4", "res3")):
        shapes[f"{decoder}.input_proj.{i}.0.weight"] = (pixels, channels[name], 1, 1)
        shapes[f"{decoder}.input_proj.{i}.0.bias"] = (pixels,)
        norm(f"{decoder}.input_proj.{i}.1", pixels)
    shapes[f"{decoder}.transformer.level_embed"] = (3, pixels)
    samples = node.NHEADS * 3 * 4  # on 3 maps, 4 points each
    for i in range(head.TRANSFORMER_ENC_LAYERS):
        layer = f"{decoder}.transformer.encoder.layers.{i}"
        linear(f"{layer}.self_attn.sampling_offsets", pixels, 2 * samples)
        linear(f"{layer}.self_attn.attention_weights", pixels, samples)
        linear(f"{layer}.self_attn.value_proj", pixels, pixels)
        linear(f"{layer}.self_attn.output_proj", pixels, pixels)
        norm(f"{layer}.norm1", pixels)
        linear(f"{layer}.linear1", pixels, 1024)
        linear(f"{layer}.linear2", 1024, pixels)
        norm(f"{layer}.norm2", pixels)
    shapes[f"{decoder}.mask_features.weight"] = (masks, pixels, 1, 1)
    shapes[f"{decoder}.mask_features.bias"] = (masks,)
    shapes[f"{decoder}.adapter_1.weight"] = (pixels, channels["res2"], 1, 1)
    norm(f"{decoder}.adapter_1.norm", pixels)
    shapes[f"{decoder}.layer_1.weight"] = (pixels, pixels, 3, 3)
    norm(f"{decoder}.layer_1.norm", pixels)

    predictor = "sem_seg_head.predictor"
    for i in range(node.DEC_LAYERS - 1):
        attention(f"{predictor}.transformer_self_attention_layers.{i}.self_attn")
        norm(f"{predictor}.transformer_self_attention_layers.{i}.norm", hidden)
        attention(f"{predictor}.transformer_cross_attention_layers.{i}.multihead_attn")
        norm(f"{predictor}.transformer_cross_attention_layers.{i}.norm", hidden)
        linear(f"{predictor}.transformer_ffn_layers.{i}.linear1", hidden, node.DIM_FEEDFORWARD)
        linear(f"{predictor}.transformer_ffn_layers.{i}.linear2", node.DIM_FEEDFORWARD, hidden)
        norm(f"{predictor}.transformer_ffn_layers.{i}.norm", hidden)
    norm(f"{predictor}.decoder_norm", hidden)
    for name in ("query_feat", "query_embed"):
        shapes[f"{predictor}.{name}.weight"] = (node.NUM_OBJECT_QUERIES, hidden)
    shapes[f"{predictor}.level_embed.weight"] = (3, hidden)
    if hidden != pixels or node.ENFORCE_INPUT_PROJ:
        for i in range(3):
            shapes[f"{predictor}.input_proj.{i}.weight"] = (hidden, pixels, 1, 1)
            shapes[f"{predictor}.input_proj.{i}.bias"] = (hidden,)
    linear(f"{predictor}.class_embed", hidden, head.NUM_CLASSES + 1)
    for i, outputs in enumerate((hidden, hidden, masks)):
        linear(f"{predictor}.mask_embed.layers.{i}", hidden, outputs)
    shapes["criterion.empty_weight"] = (head.NUM_CLASSES + 1,)
    return shapes


def own_part(state_dict):
    return {n: v for n, v in state_dict.items() if not n.startswith("backbone.")}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"MODEL__MASK_FORMER__HIDDEN_DIM": 64, "MODEL__SEM_SEG_HEAD__MASK_DIM": 16},
        {"MODEL__MASK_FORMER__ENFORCE_INPUT_PROJ": True, "MODEL__MASK_FORMER__PRE_NORM": True},
        {
            "MODEL__SEM_SEG_HEAD__CONVS_DIM": 256,
            "MODEL__SEM_SEG_HEAD__MASK_DIM": 256,
            "MODEL__SEM_SEG_HEAD__TRANSFORMER_ENC_LAYERS": 6,
            "MODEL__SEM_SEG_HEAD__NUM_CLASSES": 80,
            "MODEL__MASK_FORMER__HIDDEN_DIM": 256,
            "MODEL__MASK_FORMER__NHEADS": 8,
            "MODEL__MASK_FORMER__DIM_FEEDFORWARD": 2048,
            "MODEL__MASK_FORMER__DEC_LAYERS": 10,
            "MODEL__MASK_FORMER__NUM_OBJECT_QUERIES": 100,
            "MODEL__RESNETS__DEPTH": 50,
            "MODEL__RESNETS__STEM_OUT_CHANNELS": 64,
            "MODEL__RESNETS__RES2_OUT_CHANNELS": 256,
            "MODEL__RESNETS__NORM": "FrozenBN",
        },
    ],
    ids=["small", "other_sizes", "options", "published"],
)
def test_the_state_dict_has_the_names_and_shapes_of_the_original(changes):
    cfg = small_config(MODEL__DEVICE="meta", **changes)
    with torch.device("meta"):
        model = build_model(cfg)
        want = original_shapes(cfg)
    state = own_part(model.state_dict())
    assert {name: tuple(value.shape) for name, value in state.items()} == want
    if "MODEL__RESNETS__DEPTH" in changes:  # the paper: 44 M with a ResNet-50
        assert round(sum(p.numel() for p in model.parameters()) / 1e6) == 44


def test_each_parameter_has_one_place_in_the_file():
    model = build()
    places = [original_name(name) for name, _ in model.named_parameters()]
    assert len(set(places)) == len(places)
    thirds = {}
    for name, third in places:
        thirds.setdefault(name, []).append(third)
    assert all(own in ([None], [0, 1, 2]) for own in map(sorted_or_none, thirds.values()))


def sorted_or_none(values):
    return values if values == [None] else sorted(values)


@pytest.mark.parametrize("wrap", [False, True], ids=["plain", "in_a_module"])
def test_writing_and_reading_are_inverse(wrap):
    first, second = build(seed=0), build(seed=1)
    if wrap:
        first, second = (torch.nn.ModuleDict({"module": m}) for m in (first, second))
    state = first.state_dict()
    # Values that tell every number from every other.
    state = {n: torch.arange(v.numel()).view(v.shape) + 0.5 * len(n) for n, v in state.items()}
    report = second.load_state_dict(state)
    assert not report.missing_keys and not report.unexpected_keys
    for name, value in second.state_dict().items():
        torch.testing.assert_close(value, state[name].to(value.dtype), msg=name)


def test_the_three_parts_of_a_self_attention_are_in_the_order_of_torch():
    model = build()
    state = model.state_dict()
    prefix = "sem_seg_head.predictor.transformer_self_attention_layers.0.self_attn."
    own = {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}
    twin = torch.nn.MultiheadAttention(32, 4)
    twin.load_state_dict(own)
    queries, position = torch.randn(10, 2, 32), torch.randn(10, 2, 32)
    with torch.no_grad():
        ours = model.sem_seg_head.predictor.transformer.decoder.layers[0].self_attn(
            hidden_states=queries, position_embeddings=position
        )[0]
        want = twin(queries + position, queries + position, queries)[0]
    torch.testing.assert_close(ours, want)


def test_what_a_file_lacks_has_the_name_of_the_file():
    model = build()
    state = model.state_dict()
    fused = "sem_seg_head.predictor.transformer_self_attention_layers.1.self_attn.in_proj_weight"
    layer = "sem_seg_head.pixel_decoder.transformer.encoder.layers.0.norm1.bias"
    del state[fused], state[layer], state["backbone.stem.conv1.weight"]
    state["sem_seg_head.predictor.unheard_of"] = torch.zeros(1)
    report = build(seed=1).load_state_dict(state, strict=False)
    assert sorted(report.missing_keys) == sorted([fused, layer, "backbone.stem.conv1.weight"])
    assert report.unexpected_keys == ["sem_seg_head.predictor.unheard_of"]


def test_a_pickle_of_the_original_loads(tmp_path):
    """Such as model_final_*.pkl of its model zoo: arrays, and the older name of the queries."""
    first, second = build(seed=0), build(seed=1)
    weights = {name: value.numpy() for name, value in first.state_dict().items()}
    weights["sem_seg_head.predictor.static_query.weight"] = weights.pop(
        "sem_seg_head.predictor.query_feat.weight"
    )
    path = tmp_path / "model_final_0000.pkl"
    path.write_bytes(pickle.dumps({"model": weights, "__author__": "third_party"}))
    checkpointer = DetectionCheckpointer(second)
    checkpointer.load(str(path))
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    assert not checkpointer.load_report.missing and not checkpointer.load_report.mismatched


def test_a_file_of_other_classes_keeps_the_rest(tmp_path):
    other = build(small_config(MODEL__SEM_SEG_HEAD__NUM_CLASSES=7))
    torch.save({"model": other.state_dict()}, tmp_path / "other.pth")
    model = build(seed=1)
    checkpointer = DetectionCheckpointer(model)
    checkpointer.load(str(tmp_path / "other.pth"))
    names = {name for name, _, _ in checkpointer.load_report.mismatched}
    head = "sem_seg_head.predictor.class_embed"
    assert names == {f"{head}.weight", f"{head}.bias", "criterion.empty_weight"}
    assert not checkpointer.load_report.missing
    query = "sem_seg_head.predictor.query_feat.weight"
    assert torch.equal(model.state_dict()[query], other.state_dict()[query])


def test_a_file_of_other_sizes_is_reported(tmp_path):
    other = build(small_config(MODEL__MASK_FORMER__NUM_OBJECT_QUERIES=5))
    torch.save({"model": other.state_dict()}, tmp_path / "other.pth")
    checkpointer = DetectionCheckpointer(build())
    checkpointer.load(str(tmp_path / "other.pth"))
    names = {name.rpartition("predictor.")[2] for name, _, _ in checkpointer.load_report.mismatched}
    assert names == {"query_feat.weight", "query_embed.weight"}


def test_loading_brings_back_the_predictions(tmp_path):
    first, second = build(seed=0).eval(), build(seed=1).eval()
    torch.save({"model": first.state_dict()}, tmp_path / "model.pth")
    DetectionCheckpointer(second).load(str(tmp_path / "model.pth"))
    with torch.no_grad():
        (a,), (b,) = first([make_input(0)]), second([make_input(0)])
    assert np.array_equal(a["instances"].scores.numpy(), b["instances"].scores.numpy())
    assert torch.equal(a["instances"].pred_masks, b["instances"].pred_masks)
