"""DINO's attention, encoder and positions, against loops and against the library."""

import math
from types import SimpleNamespace

import pytest
import torch

from tests.weaksam.dino_samples import random_maps
from weaksam.dino import attention as attention_module
from weaksam.dino.attention import deformable_attention
from weaksam.dino.maps import flatten_maps
from weaksam.dino.positions import (
    box_encoding,
    cxcywh_to_xyxy,
    inverse_sigmoid,
    map_encoding,
    xyxy_to_cxcywh,
)
from weaksam.dino.transformer import Encoder, TransformerSizes, cell_centers

pytest.importorskip("transformers")  # the extra [sam]

DIM, HEADS, LEVELS, POINTS = 16, 2, 2, 3
SIZES = TransformerSizes(
    dim=DIM, heads=HEADS, levels=LEVELS, points=POINTS, ffn_dim=32, encoder_layers=2
)


def shaken(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Random weights: those at the start are partly zero."""
    torch.manual_seed(seed)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module


def sample(grid: torch.Tensor, x: float, y: float) -> torch.Tensor:
    """Bilinear value of (H, W, C) at x, y in [0, 1]; 0 outside."""
    height, width, channels = grid.shape
    x, y = x * width - 0.5, y * height - 0.5
    total = torch.zeros(channels)
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < height and 0 <= column < width:
                total += (1 - abs(y - row)) * (1 - abs(x - column)) * grid[row, column]
    return total


@pytest.mark.parametrize("coordinates", [2, 4])
@torch.no_grad()
def test_deformable_attention_is_a_loop_over_samples(coordinates: int):
    maps = random_maps(dim=DIM, levels=LEVELS)
    attention = shaken(deformable_attention(DIM, HEADS, LEVELS, POINTS))
    queries, positions = torch.randn(2, 5, DIM), torch.randn(2, 5, DIM)
    places = torch.rand(2, 5, LEVELS, coordinates)
    got = maps.attend(attention, queries, positions, places)

    values = attention.value_proj(maps.values) * ~maps.is_padding[..., None]
    levels = [
        level.unflatten(1, size)
        for level, size in zip(values.split([8 * 12, 4 * 6], dim=1), maps.sizes_hw, strict=True)
    ]
    placed, head_dim = queries + positions, DIM // HEADS
    for b in range(2):
        for q in range(5):
            offsets = attention.sampling_offsets(placed[b, q]).view(HEADS, LEVELS, POINTS, 2)
            weights = attention.attention_weights(placed[b, q]).view(HEADS, -1).softmax(-1)
            found = []
            for h in range(HEADS):
                total = torch.zeros(head_dim)
                for i in range(LEVELS):
                    height, width = maps.sizes_hw[i]
                    own = levels[i][b, :, :, h * head_dim : (h + 1) * head_dim]
                    for p in range(POINTS):
                        x, y = places[b, q, i, :2].tolist()
                        dx, dy = offsets[h, i, p].tolist()
                        if coordinates == 2:
                            x, y = x + dx / width, y + dy / height
                        else:
                            w, h_ = places[b, q, i, 2:].tolist()
                            x, y = x + dx / POINTS * w / 2, y + dy / POINTS * h_ / 2
                        total += weights[h, i * POINTS + p] * sample(own, x, y)
                found.append(total)
            want = attention.output_proj(torch.cat(found))
            torch.testing.assert_close(got[b, q], want, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_new_attention_looks_around_itself_in_all_directions():
    attention = deformable_attention(DIM, 8, LEVELS, POINTS)
    offsets = attention.sampling_offsets(torch.randn(DIM)).view(8, LEVELS, POINTS, 2)
    for point in range(POINTS):
        around = offsets[:, 0, point]
        torch.testing.assert_close(around.abs().amax(-1), torch.full((8,), point + 1.0))
        torch.testing.assert_close(around.sum(0), torch.zeros(2), atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_encoder_is_the_library_s():
    from transformers import DeformableDetrConfig
    from transformers.models.deformable_detr.modeling_deformable_detr import DeformableDetrEncoder

    maps = random_maps(dim=DIM, levels=LEVELS)
    ours = shaken(Encoder(SIZES)).eval()
    config = DeformableDetrConfig(
        d_model=DIM,
        encoder_layers=2,
        encoder_attention_heads=HEADS,
        encoder_n_points=POINTS,
        encoder_ffn_dim=32,
        num_feature_levels=LEVELS,
        activation_function="relu",
        disable_custom_kernels=True,
    )
    theirs = DeformableDetrEncoder(config).eval()
    names = {
        "ffn.layers.0.0": "mlp.fc1",
        "ffn.layers.1": "mlp.fc2",
        "norms.0": "self_attn_layer_norm",
        "norms.1": "final_layer_norm",
    }
    weights = {}
    for name, value in ours.state_dict().items():
        for own, library in names.items():
            name = name.replace(f".{own}.", f".{library}.")
        weights[name] = value
    theirs.load_state_dict(weights)
    sizes = torch.tensor(maps.sizes_hw)
    want = theirs(
        inputs_embeds=maps.values,
        attention_mask=~maps.is_padding,
        spatial_position_embeddings=maps.positions,
        spatial_shapes=sizes,
        spatial_shapes_list=maps.sizes_hw,
        level_start_index=torch.tensor([0, 96]),
        valid_ratios=maps.valid_ratios,
    ).last_hidden_state
    torch.testing.assert_close(ours(maps).values, want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        cell_centers(maps),
        theirs.get_reference_points(tuple(maps.sizes_hw), maps.valid_ratios, "cpu"),
    )


@torch.no_grad()
def test_padding_changes_nothing():
    torch.manual_seed(0)
    level_embed = torch.randn(1, DIM)
    one_level = TransformerSizes(
        dim=DIM, heads=HEADS, levels=1, points=POINTS, ffn_dim=32, encoder_layers=2
    )
    encoder = shaken(Encoder(one_level)).eval()
    small = torch.randn(1, DIM, 4, 5)
    large = torch.randn(1, DIM, 7, 9)
    large[:, :, :4, :5] = small
    is_padding = torch.ones(1, 7, 9, dtype=torch.bool)
    is_padding[:, :4, :5] = False
    alone = encoder(flatten_maps([small], torch.zeros(1, 4, 5, dtype=bool), level_embed, 20))
    padded = encoder(flatten_maps([large], is_padding, level_embed, 20))
    assert padded.valid_ratios.tolist() == [[[pytest.approx(5 / 9), pytest.approx(4 / 7)]]]
    inside = padded.values[:, ~padded.is_padding[0]]
    torch.testing.assert_close(inside, alone.values, rtol=1e-4, atol=1e-5)


def test_boxes_are_encoded_number_by_number():
    boxes = torch.rand(2, 3, 4)
    got = box_encoding(boxes, channels=6)
    assert got.shape == (2, 3, 24)
    for b in range(2):
        for q in range(3):
            x, y, w, h = (2 * math.pi * v for v in boxes[b, q].tolist())
            want = []
            for value in (y, x, w, h):
                for k in range(3):
                    angle = value / 10_000 ** (2 * k / 6)
                    want += [math.sin(angle), math.cos(angle)]
            torch.testing.assert_close(got[b, q], torch.tensor(want), rtol=1e-4, atol=1e-5)


def test_places_are_encoded_relative_to_the_image_without_padding():
    is_padding = torch.ones(1, 4, 6, dtype=torch.bool)
    is_padding[0, :2, :5] = False
    got = map_encoding(is_padding, channels=4, temperature=20)
    assert got.shape == (1, 4, 6, 8)
    for row, column in ((0, 0), (1, 4), (0, 3)):
        want = []
        for place in ((row + 1) / 2, (column + 1) / 5):
            for k in range(2):
                angle = 2 * math.pi * place / 20 ** (2 * k / 4)
                want += [math.sin(angle), math.cos(angle)]
        torch.testing.assert_close(got[0, row, column], torch.tensor(want), rtol=1e-3, atol=1e-4)


def test_boxes_convert_both_ways():
    boxes = torch.tensor([[10.0, 20.0, 4.0, 6.0]])
    assert cxcywh_to_xyxy(boxes).tolist() == [[8, 17, 12, 23]]
    assert xyxy_to_cxcywh(cxcywh_to_xyxy(boxes)).tolist() == boxes.tolist()
    x = torch.tensor([0.2, 0.5, 0.9])
    torch.testing.assert_close(inverse_sigmoid(x, 1e-5).sigmoid(), x)
    limit = math.log(1e3)
    got = inverse_sigmoid(torch.tensor([-1.0, 0.0, 1.0, 2.0]), 1e-3)
    torch.testing.assert_close(got, torch.tensor([-limit, -limit, limit, limit]))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch):
    nowhere = SimpleNamespace(util=SimpleNamespace(find_spec=lambda name: None))
    monkeypatch.setattr(attention_module, "importlib", nowhere)
    with pytest.raises(ImportError, match=r"DINO needs .*transformers.* pip install"):
        deformable_attention(DIM, HEADS, LEVELS, POINTS)


def test_sizes_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="HIDDEN_DIM=30: .*NUM_HEADS=8"):
        TransformerSizes(dim=30)
