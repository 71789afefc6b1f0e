"""First weights of Mask2Former's parts, as in the original; the library sets them elsewhere."""

import math
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["initialize_pixel_decoder", "initialize_transformer"]


def initialize_pixel_decoder(decoder: nn.Module) -> None:
    """Set all weights of a `Mask2FormerPixelDecoder`, in place."""
    nn.init.normal_(decoder.level_embed)
    for projection in decoder.input_projections:
        nn.init.xavier_uniform_(projection[0].weight)
        nn.init.zeros_(projection[0].bias)
    for layer in decoder.encoder.layers:
        nn.init.xavier_uniform_(layer.fc1.weight)
        nn.init.xavier_uniform_(layer.fc2.weight)
        _initialize_deformable_attention(layer.self_attn)
    convolutions = [own[0] for own in decoder.lateral_convolutions + decoder.output_convolutions]
    for convolution in (*convolutions, decoder.mask_projection):
        _initialize_convolution(convolution)


def _initialize_deformable_attention(attention: Any) -> None:
    """Head h looks in the direction 2 pi h / heads, point p at p + 1 pixels (max norm)."""
    nn.init.zeros_(attention.sampling_offsets.weight)
    angles = torch.arange(attention.n_heads) * (2 * math.pi / attention.n_heads)
    directions = torch.stack([angles.cos(), angles.sin()], dim=1)  # (heads, 2) x, y
    directions = directions / directions.abs().amax(dim=1, keepdim=True)
    steps = torch.arange(1, attention.n_points + 1)
    offsets = directions[:, None, None] * steps[:, None]  # (heads, 1, points, 2)
    with torch.no_grad():
        bias = attention.sampling_offsets.bias
        bias.copy_(offsets.expand(-1, attention.n_levels, -1, -1).flatten())
    nn.init.zeros_(attention.attention_weights.weight)
    nn.init.zeros_(attention.attention_weights.bias)
    for projection in (attention.value_proj, attention.output_proj):
        nn.init.xavier_uniform_(projection.weight)
        nn.init.zeros_(projection.bias)


def initialize_transformer(transformer: nn.Module) -> None:
    """Set the weights of a `Mask2FormerTransformerModule` that differ from torch's defaults.

    Those of queries, level embedding and mask MLP are torch's.
    """
    for projection in transformer.input_projections:
        if isinstance(projection, nn.Conv2d):  # else there is none
            _initialize_convolution(projection)
    for layer in transformer.decoder.layers:
        for weight in (layer.cross_attn.in_proj_weight, layer.cross_attn.out_proj.weight):
            nn.init.xavier_uniform_(weight)
        own = layer.self_attn
        # One matrix of 3 times the rows in the original, so their bound is smaller by sqrt(2).
        _initialize_fused([own.q_proj.weight, own.k_proj.weight, own.v_proj.weight])
        nn.init.xavier_uniform_(own.out_proj.weight)
        for projection in (own.q_proj, own.k_proj, own.v_proj, own.out_proj):
            nn.init.zeros_(projection.bias)
        nn.init.xavier_uniform_(layer.fc1.weight)
        nn.init.xavier_uniform_(layer.fc2.weight)


def _initialize_fused(weights: list[Tensor]) -> None:
    """Xavier's bound for the matrix that the weights, one above the other, would make."""
    rows = sum(len(weight) for weight in weights)
    bound = math.sqrt(6 / (rows + weights[0].shape[1]))
    for weight in weights:
        nn.init.uniform_(weight, -bound, bound)


def _initialize_convolution(convolution: nn.Conv2d) -> None:
    nn.init.kaiming_uniform_(convolution.weight, a=1)
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
