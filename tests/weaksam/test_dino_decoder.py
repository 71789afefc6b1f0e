"""DINO's decoder, queries and positions against Grounding DINO of `transformers`.

That network is DINO with one attention more, to a text. Here its text changes nothing.
"""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.weaksam.dino_samples import random_maps
from weaksam.dino.head import box_branch
from weaksam.dino.positions import map_encoding
from weaksam.dino.selection import place_boxes
from weaksam.dino.transformer import Decoder, TransformerSizes

pytest.importorskip("transformers")  # the extra [sam]

DIM, HEADS, LEVELS, POINTS, LAYERS, QUERIES = 32, 4, 2, 3, 3, 7


@pytest.fixture(scope="module")
def library():
    from transformers.models.grounding_dino import modeling_grounding_dino

    return modeling_grounding_dino


def our_decoder() -> tuple[Decoder, nn.ModuleList]:
    """A decoder and box branches with random weights."""
    torch.manual_seed(0)
    sizes = TransformerSizes(
        dim=DIM, heads=HEADS, levels=LEVELS, points=POINTS, ffn_dim=48, decoder_layers=LAYERS
    )
    decoder = Decoder(sizes).eval()
    branches = nn.ModuleList(box_branch(DIM) for _ in range(LAYERS))
    for parameter in (*decoder.parameters(), *branches.parameters()):
        nn.init.normal_(parameter, std=0.2)
    return decoder, branches


def library_weights(decoder: Decoder) -> dict[str, torch.Tensor]:
    """Our weights by the library's names, and values of its text parts that change nothing."""
    names = {
        "cross_attn": "encoder_attn",
        "ffn.layers.0.0": "fc1",
        "ffn.layers.1": "fc2",
        # A norm of a norm with weight 1 and bias 0 is the norm.
        "norms.0": "encoder_attn_text_layer_norm",
        "norms.1": "encoder_attn_layer_norm",
        "norms.2": "final_layer_norm",
        "self_attn.attn.out_proj": "self_attn.out_proj",
        "ref_point_head": "reference_points_head",
    }
    weights = {}
    for name, value in decoder.state_dict().items():
        if ".in_proj_" in name:
            prefix, kind = name.split("attn.in_proj_")
            for part, own in zip(("query", "key", "value"), value.chunk(3), strict=True):
                weights[f"{prefix}{part}.{kind}"] = own
            continue
        name = name.replace("norm.", "layer_norm.") if name.startswith("norm.") else name
        for ours, theirs in names.items():
            name = name.replace(f".{ours}.", f".{theirs}.")
            name = name.replace(ours, theirs) if name.startswith(ours) else name
        weights[name] = value
    return weights


@torch.no_grad()
def test_the_decoder_is_the_library_s(library):
    ours, branches = our_decoder()
    config = library.GroundingDinoConfig(
        d_model=DIM,
        decoder_layers=LAYERS,
        decoder_attention_heads=HEADS,
        decoder_n_points=POINTS,
        decoder_ffn_dim=48,
        num_feature_levels=LEVELS,
        num_queries=QUERIES,
        activation_function="relu",
        dropout=0.0,
        disable_custom_kernels=True,
    )
    theirs = library.GroundingDinoDecoder(config).eval()
    missing, unexpected = theirs.load_state_dict(library_weights(ours), strict=False)
    assert not unexpected
    assert all("encoder_attn_text." in n or "self_attn_layer_norm" in n for n in missing)
    for layer in theirs.layers:
        for parameter in layer.encoder_attn_text.out_proj.parameters():
            parameter.zero_()
    theirs.bbox_embed = branches

    maps = random_maps(dim=DIM, levels=LEVELS)
    queries, boxes = torch.randn(2, QUERIES, DIM), 0.2 + 0.4 * torch.rand(2, QUERIES, 4)
    got, starts = ours(queries, boxes, maps, branches)
    want = theirs(
        inputs_embeds=queries,
        vision_encoder_hidden_states=maps.values,
        vision_encoder_attention_mask=~maps.is_padding,
        text_encoder_hidden_states=torch.randn(2, 1, DIM),
        text_encoder_attention_mask=torch.zeros(2, 1, dtype=torch.bool),
        reference_points=boxes,
        spatial_shapes=torch.tensor(maps.sizes_hw),
        spatial_shapes_list=maps.sizes_hw,
        level_start_index=torch.tensor([0, 96]),
        valid_ratios=maps.valid_ratios,
        return_dict=True,
    )
    torch.testing.assert_close(
        got, want.intermediate_hidden_states.transpose(0, 1), rtol=1e-3, atol=1e-4
    )
    refined = want.intermediate_reference_points.transpose(0, 1)
    torch.testing.assert_close(starts[0], boxes)
    torch.testing.assert_close(starts[1:], refined[:-1], rtol=1e-3, atol=1e-4)
    assert (starts[1] - starts[0]).abs().mean() > 0.01


def test_boxes_of_places_are_the_library_s(library):
    maps = random_maps(dim=DIM, levels=LEVELS)
    same = SimpleNamespace(enc_output=nn.Identity(), enc_output_norm=nn.Identity())
    memory, want = library.GroundingDinoModel.generate_encoder_output_proposals(
        same, maps.values, maps.is_padding, maps.sizes_hw
    )
    got, is_used = place_boxes(maps)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.where(is_used[..., None], maps.values, 0), memory)


def test_encodings_of_places_are_the_library_s(library):
    is_padding = torch.zeros(2, 5, 7, dtype=torch.bool)
    is_padding[1, 3:], is_padding[1, :, 4:] = True, True
    config = SimpleNamespace(d_model=DIM, positional_embedding_temperature=20)
    want = library.GroundingDinoSinePositionEmbedding(config)(is_padding, ~is_padding)
    got = map_encoding(is_padding, DIM // 2, temperature=20)
    torch.testing.assert_close(got.permute(0, 3, 1, 2), want)
