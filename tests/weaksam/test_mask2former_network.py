"""Mask2Former: its network and losses are the library's, its first weights the original's."""

import importlib.util
import math

import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra [sam]")

import transformers

from detectron2.modeling import meta_architecture
from detectron2.structures import Instances, PolygonMasks
from tests.weaksam.small_mask2former import CLASSES, build, make_input, small_config
from weaksam.mask2former import losses
from weaksam.mask2former.head import Stage
from weaksam.mask2former.losses import find_targets, stage_losses
from weaksam.mask2former.settings import HeadSettings, LossSettings, library_config

pytestmark = pytest.mark.usefixtures("one_thread")


class OurBackbone(torch.nn.Module):
    """Our ResNet as the library wants one."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixels):
        features = self.model.backbone(pixels)
        maps = [features[name] for name in self.model.in_features]
        return transformers.modeling_outputs.BackboneOutput(feature_maps=maps)


def library_model(model):
    """The library's whole network with the backbone and the weights of ours."""
    cfg = small_config()
    settings = type(model).from_config(cfg)
    config = library_config(settings["head_settings"], settings["loss_settings"])
    config.backbone_config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 32, 64], depths=[1, 1, 1, 1], layer_type="basic"
    )
    config.backbone_config.out_features = ["stage1", "stage2", "stage3", "stage4"]
    whole = transformers.Mask2FormerForUniversalSegmentation(config)
    whole.model.pixel_level_module.encoder = OurBackbone(model)
    head = model.sem_seg_head
    whole.model.pixel_level_module.decoder.load_state_dict(head.pixel_decoder.state_dict())
    whole.model.transformer_module.load_state_dict(head.predictor.transformer.state_dict())
    whole.class_predictor.load_state_dict(head.predictor.class_embed.state_dict())
    return whole.train(model.training)


def test_predictions_and_losses_are_those_of_the_library():
    model = build()
    whole = library_model(model)
    inputs = [make_input(0), make_input(1, 2, 80)]
    images = model.preprocess_image(inputs)
    targets = find_targets(inputs, images.tensor.shape[-2:], model.device)
    torch.manual_seed(5)
    terms = model(inputs)
    torch.manual_seed(5)
    output = whole(
        images.tensor,
        mask_labels=targets.masks,
        class_labels=targets.classes,
        output_auxiliary_logits=True,
    )
    torch.testing.assert_close(sum(terms.values()), output.loss)
    stages = model.stages(images)
    assert len(stages) == 3
    torch.testing.assert_close(stages[-1].class_logits, output.class_queries_logits)
    torch.testing.assert_close(stages[-1].mask_logits, output.masks_queries_logits)
    for stage, other in zip(stages[:-1], output.auxiliary_logits, strict=True):
        torch.testing.assert_close(stage.class_logits, other["class_queries_logits"])
        torch.testing.assert_close(stage.mask_logits, other["masks_queries_logits"])


def sample(plane, x, y):
    """(C, H, W) between pixel centers at i + 0.5, 0 outside: (C,)."""
    total, (height, width) = 0.0, plane.shape[1:]
    for i in (math.floor(y - 0.5), math.floor(y - 0.5) + 1):
        for j in (math.floor(x - 0.5), math.floor(x - 0.5) + 1):
            if 0 <= i < height and 0 <= j < width:
                weight = (1 - abs(y - 0.5 - i)) * (1 - abs(x - 0.5 - j))
                total = total + weight * plane[:, i, j]
    return total


def test_deformable_attention_equals_a_loop_over_samples():
    attention = build().sem_seg_head.pixel_decoder.encoder.layers[0].self_attn
    torch.nn.init.normal_(attention.sampling_offsets.weight, std=0.3)
    torch.nn.init.normal_(attention.attention_weights.weight, std=0.3)
    shapes = [(2, 3), (3, 5), (4, 6)]
    count = sum(h * w for h, w in shapes)
    x, position, places = torch.randn(count, 32), torch.randn(count, 32), torch.rand(count, 2)
    with torch.no_grad():
        got, _ = attention(
            x[None],
            encoder_hidden_states=x[None],
            position_embeddings=position[None],
            reference_points=places[None, :, None].expand(-1, -1, 3, -1),
            spatial_shapes_list=shapes,
        )
        query, values = x + position, attention.value_proj(x).view(count, 4, 8)
        offsets = attention.sampling_offsets(query).view(count, 4, 3, 4, 2)
        weights = attention.attention_weights(query).view(count, 4, 12).softmax(-1)
        start, planes = 0, []
        for height, width in shapes:
            part = values[start : start + height * width].view(height, width, 4, 8)
            planes.append(part.permute(2, 3, 0, 1))
            start += height * width
        gathered, some = torch.zeros(count, 4, 8), range(0, count, 7)
        for q in some:
            for head in range(4):
                for level, (height, width) in enumerate(shapes):
                    for point in range(4):
                        dx, dy = offsets[q, head, level, point].tolist()
                        px, py = places[q].tolist()
                        value = sample(planes[level][head], px * width + dx, py * height + dy)
                        gathered[q, head] += weights[q, head, 4 * level + point] * value
        want = attention.output_proj(gathered.view(count, 32))
    torch.testing.assert_close(got[0, ::7], want[::7], atol=1e-5, rtol=1e-4)


def test_losses_are_those_of_the_paper(monkeypatch):
    """Matching and losses by loops, on masks that are the same at every point."""
    rand = torch.rand  # the points: away from the border, where sampling fades to 0
    monkeypatch.setattr(torch, "rand", lambda *size, **more: 0.2 + 0.6 * rand(*size, **more))
    model = build()
    settings = model.loss_settings
    inputs = [make_input(3)]
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(1, 10, CLASSES + 1, generator=generator)
    levels = torch.randn(10, generator=generator) * 2
    flat = levels.view(1, 10, 1, 1).expand(1, 10, 16, 16)
    for i, instance_level in enumerate((1.0, 0.0, 1.0)):
        inputs[0]["instances"].gt_masks.tensor[i] = bool(instance_level)
    targets = find_targets(inputs, (64, 64), model.device)
    got = stage_losses(model.criterion, settings, [Stage(logits, flat)], targets)

    points, probabilities = settings.num_points, logits[0].softmax(-1)
    truth, classes = [1.0, 0.0, 1.0], inputs[0]["instances"].gt_classes.tolist()

    def mask_terms(level, t):
        p = torch.sigmoid(level)
        cross_entropy = -(t * p.log() + (1 - t) * (1 - p).log())
        return cross_entropy, 1 - (2 * p * t * points + 1) / (p * points + t * points + 1)

    best = None
    for a in range(10):
        for b in range(10):
            for c in range(10):
                if len({a, b, c}) < 3:
                    continue
                cost = 0.0
                for q, t, k in zip((a, b, c), truth, classes, strict=True):
                    mask, dice = mask_terms(levels[q], t)
                    cost += 5 * mask + 5 * dice - 2 * probabilities[q, k]
                if best is None or cost < best[0]:
                    best = (cost, (a, b, c))
    rows = best[1]
    terms = [mask_terms(levels[q], t) for q, t in zip(rows, truth, strict=True)]
    torch.testing.assert_close(got["loss_mask"], 5 * sum(m for m, _ in terms) / 3)
    torch.testing.assert_close(got["loss_dice"], 5 * sum(d for _, d in terms) / 3)
    wanted = {q: k for q, k in zip(rows, classes, strict=True)}
    total, weights = 0.0, 0.0
    for q in range(10):
        k = wanted.get(q, CLASSES)
        weight = 0.1 if k == CLASSES else 1.0
        total -= weight * probabilities[q, k].log()
        weights += weight
    torch.testing.assert_close(got["loss_ce"], 2 * total / weights)


def test_losses_do_not_depend_on_the_order_of_instances():
    model = build().eval()  # batch norm would see nothing else, but keeps its averages
    model.training = True
    x, moved = make_input(2, 4), make_input(2, 4)
    moved["instances"] = moved["instances"][torch.tensor([2, 0, 3, 1])]
    results = []
    for own in (x, moved):
        torch.manual_seed(0)
        results.append(model([own]))
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name], msg=name)


def test_mask_losses_are_divided_by_the_mean_count_of_the_processes(monkeypatch):
    model = build().eval()
    model.training = True
    inputs = [make_input(0, 3)]
    torch.manual_seed(0)
    alone = model(inputs)
    monkeypatch.setattr(losses.comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(losses.dist, "all_reduce", lambda count: count.add_(7.0))
    torch.manual_seed(0)
    beside_seven = model(inputs)
    for name, value in alone.items():
        factor = 1.0 if name.startswith("loss_ce") else 3 / 5  # 5 is the mean of 3 and 7
        torch.testing.assert_close(beside_seven[name], factor * value, msg=name)


def test_deformable_attention_and_losses_are_exact_under_autocast():
    model = build().eval()
    model.training = True
    results = []
    for enabled in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            results.append(model([make_input(0)]))
    for name, value in results[0].items():
        assert results[1][name].dtype == torch.float32
        torch.testing.assert_close(results[1][name], value, rtol=0.1, atol=0.1, msg=name)
    sum(results[1].values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_without_deep_supervision_only_the_last_stage_counts():
    model = build(small_config(MODEL__MASK_FORMER__DEEP_SUPERVISION=False))
    assert set(model([make_input(0)])) == {"loss_ce", "loss_mask", "loss_dice"}
    assert len(build()([make_input(0)])) == 9


def test_images_without_instances_train_the_classes_alone():
    model = build()
    x = make_input(0, 0)
    x["instances"] = Instances((64, 64), gt_classes=torch.zeros(0, dtype=torch.int64))
    terms = model([x])
    assert terms["loss_mask"] == terms["loss_dice"] == 0 and terms["loss_ce"] > 0
    sum(terms.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_every_parameter_learns():
    model = build()
    sum(model([make_input(0), make_input(1, 2, 80)]).values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    silent = {n for n, p in model.named_parameters() if not p.grad.abs().sum()}
    # It acts through weights of the deformable attention that are 0 at first.
    assert silent == {"sem_seg_head.pixel_decoder.level_embed"}


def test_polygons_are_drawn_and_masks_padded():
    square = [torch.tensor([8.0, 4, 24, 4, 24, 20, 8, 20]).double().numpy()]
    own = Instances((40, 50), gt_masks=PolygonMasks([square]), gt_classes=torch.tensor([1]))
    (mask,) = find_targets([{"instances": own}], (64, 64), torch.device("cpu")).masks
    want = torch.zeros(1, 64, 64)
    want[0, 4:20, 8:24] = 1
    assert torch.equal(mask, want)


def test_inputs_without_masks_are_named():
    model = build()
    x = make_input(0) | {"file_name": "a.jpg"}
    x["instances"].remove("gt_masks")
    with pytest.raises(ValueError, match="a.jpg has no masks.*segmentations"):
        model([x])
    del x["instances"]
    with pytest.raises(ValueError, match="a.jpg has no instances"):
        model([x])


def test_a_few_images_are_learned_by_heart():
    model = build(small_config(MODEL__RESNETS__NORM="FrozenBN"))
    inputs = [make_input(seed, 2, 48) for seed in range(2)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(30):
        terms = model(inputs)
        optimizer.zero_grad()
        sum(terms.values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()
    with torch.no_grad():
        results = model(inputs)
    for x, result in zip(inputs, results, strict=True):
        found, truth = result["instances"], x["instances"]
        for mask, label in zip(truth.gt_masks.tensor, truth.gt_classes, strict=True):
            own = found[(found.pred_classes == label) & (found.scores > 0.5)]
            shared = (own.pred_masks & mask).flatten(1).sum(1)
            union = (own.pred_masks | mask).flatten(1).sum(1)
            assert len(own) and (shared / union).max() > 0.7


def test_the_first_weights_are_those_of_the_original():
    model = build(small_config(MODEL__MASK_FORMER__HIDDEN_DIM=64))
    head = model.sem_seg_head
    attention = head.pixel_decoder.encoder.layers[0].self_attn
    offsets = attention.sampling_offsets.bias.view(4, 3, 4, 2)  # heads, levels, points, xy
    want = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    for level in range(3):
        for point in range(4):
            torch.testing.assert_close(
                offsets[:, level, point].detach(), want * (point + 1), atol=1e-6, rtol=0
            )
    layer = head.predictor.transformer.decoder.layers[0]
    bound = math.sqrt(6 / (3 * 64 + 64))
    for weight in (layer.self_attn.q_proj.weight, layer.cross_attn.in_proj_weight):
        assert 0.97 * bound < weight.abs().max() <= bound
    assert not layer.self_attn.v_proj.bias.any()
    assert 0.8 < head.pixel_decoder.level_embed.std() < 1.2
    assert 0.9 < head.predictor.transformer.queries_features.weight.std() < 1.1
    projection = head.predictor.transformer.input_projections[0]
    assert projection.weight.abs().max() <= math.sqrt(3 / 32)  # kaiming, a = 1, 32 inputs


def test_a_dilated_backbone_fits():
    model = build(small_config(MODEL__RESNETS__DEPTH=50, MODEL__RESNETS__RES5_DILATION=2)).eval()
    with torch.no_grad():
        (result,) = model([make_input(0)])
    assert result["instances"].image_size == (64, 64)


def test_dropout_leaves_out_no_layers():
    model = build(small_config(MODEL__MASK_FORMER__DROPOUT=0.9))
    for _ in range(5):
        assert len(model([make_input(0)])) == 9


def test_the_interface_knows_the_key_of_classes():
    cfg = small_config()
    assert meta_architecture(cfg).num_classes(cfg) == CLASSES
    with pytest.raises(ValueError, match="MaskFormer has no test-time augmentation"):
        meta_architecture(cfg).check_tta(cfg)


@pytest.mark.parametrize(
    "key,value,message",
    [
        ("MODEL__SEM_SEG_HEAD__CONVS_DIM", 48, "CONVS_DIM=48: must be a multiple of 32"),
        ("MODEL__MASK_FORMER__HIDDEN_DIM", 30, "HIDDEN_DIM=30.*NHEADS=4"),
        ("MODEL__MASK_FORMER__DEC_LAYERS", 1, "DEC_LAYERS=1: must be at least 2"),
        ("MODEL__SEM_SEG_HEAD__IN_FEATURES", ["res3", "res4", "res5"], "strides.*'res2': 4"),
        ("MODEL__MASK_ON", False, "set MODEL.MASK_ON True"),
    ],
)
def test_unfit_settings_are_refused(key, value, message):
    with pytest.raises(ValueError, match=message):
        build(small_config(**{key: value}))


def test_without_the_package_the_remedy_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"transformers, which is not installed: pip install"):
        library_config(HeadSettings(num_classes=3), LossSettings())
