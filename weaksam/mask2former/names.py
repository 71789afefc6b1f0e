"""Checkpoint names of the original project for the library's modules, in both directions.

The library renames the original's layers and splits the matrix of each self-attention in three.
With `use_original_names` a state dict has the original's names and shapes: files of the original
project load here, and those written here load there.
"""

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["original_name", "use_original_names"]

# Pattern of our name and the original's; all that match are applied, in this order.
_RENAMES = [
    (re.compile(pattern), name)
    for pattern, name in [
        # Pixel decoder.
        (r"\bpixel_decoder\.input_projections\.", "pixel_decoder.input_proj."),
        (r"\bpixel_decoder\.level_embed\b", "pixel_decoder.transformer.level_embed"),
        (r"\bpixel_decoder\.mask_projection\.", "pixel_decoder.mask_features."),
        (r"\bpixel_decoder\.(adapter|layer)_(\d+)\.0\.", r"pixel_decoder.\1_\2."),
        (r"\bpixel_decoder\.(adapter|layer)_(\d+)\.1\.", r"pixel_decoder.\1_\2.norm."),
        (r"\bpixel_decoder\.encoder\.", "pixel_decoder.transformer.encoder."),
        (r"(\bencoder\.layers\.\d+\.)self_attn_layer_norm\.", r"\1norm1."),
        (r"(\bencoder\.layers\.\d+\.)fc(\d)\.", r"\1linear\2."),
        (r"(\bencoder\.layers\.\d+\.)final_layer_norm\.", r"\1norm2."),
        # Transformer decoder.
        (r"\bpredictor\.transformer\.", "predictor."),
        (r"\bpredictor\.queries_embedder\.", "predictor.query_embed."),
        (r"\bpredictor\.queries_features\.", "predictor.query_feat."),
        (r"\bpredictor\.input_projections\.", "predictor.input_proj."),
        (r"\bdecoder\.layernorm\.", "decoder_norm."),
        (r"\bdecoder\.mask_predictor\.mask_embedder\.(\d+)\.0\.", r"mask_embed.layers.\1."),
        (
            r"\bdecoder\.layers\.(\d+)\.self_attn\.",
            r"transformer_self_attention_layers.\1.self_attn.",
        ),
        (
            r"\bdecoder\.layers\.(\d+)\.self_attn_layer_norm\.",
            r"transformer_self_attention_layers.\1.norm.",
        ),
        (
            r"\bdecoder\.layers\.(\d+)\.cross_attn\.",
            r"transformer_cross_attention_layers.\1.multihead_attn.",
        ),
        (
            r"\bdecoder\.layers\.(\d+)\.cross_attn_layer_norm\.",
            r"transformer_cross_attention_layers.\1.norm.",
        ),
        (r"\bdecoder\.layers\.(\d+)\.fc(\d)\.", r"transformer_ffn_layers.\1.linear\2."),
        (r"\bdecoder\.layers\.(\d+)\.final_layer_norm\.", r"transformer_ffn_layers.\1.norm."),
    ]
]
_FUSED = re.compile(r"(\bself_attn\.)([qkv])_proj\.(weight|bias)$")
# Files of the original's first version call the queries' features so.
_OLD_QUERIES = ("predictor.static_query.", "predictor.query_feat.")


def original_name(name: str) -> tuple[str, int | None]:
    """The original's name of one of our tensors, with any prefix.

    Returns:
        the name, and which third of that tensor ours is; None if it is the whole.
    """
    for pattern, replacement in _RENAMES:
        name = pattern.sub(replacement, name)
    fused = _FUSED.search(name)
    if fused is None:
        return name, None
    return f"{name[: fused.start()]}{fused[1]}in_proj_{fused[3]}", "qkv".index(fused[2])


def use_original_names(head: nn.Module) -> None:
    """Let the state dicts of a `MaskFormerHead`, written or loaded, have the original's names."""
    head.register_state_dict_post_hook(_rename_written)
    head.register_load_state_dict_pre_hook(_rename_read)
    head.register_load_state_dict_post_hook(_rename_missing)


def _rename_written(
    head: nn.Module, state_dict: dict[str, Tensor], prefix: str, local_metadata: dict
) -> None:
    """Replace the head's entries, which all start with `prefix`, in place."""
    thirds: dict[str, list[Tensor]] = {}
    for name in [name for name in state_dict if name.startswith(prefix)]:
        value = state_dict.pop(name)
        renamed, third = original_name(name)
        if third is None:
            state_dict[renamed] = value
            continue
        thirds.setdefault(renamed, [value] * 3)[third] = value
        state_dict[renamed] = value  # its place, until all thirds are there
    state_dict.update({name: torch.cat(values) for name, values in thirds.items()})


def _rename_read(head: nn.Module, state_dict: dict[str, Tensor], prefix: str, *others: Any) -> None:
    """Replace the original's entries by ours in place; unknown ones stay, to be reported."""
    for name in [name for name in state_dict if _OLD_QUERIES[0] in name]:
        state_dict.setdefault(name.replace(*_OLD_QUERIES), state_dict.pop(name))
    found = {}
    for name in _own_names(head, prefix):
        renamed, third = original_name(name)
        if renamed in state_dict:
            value = state_dict[renamed]
            found[name] = value if third is None else value.chunk(3)[third]
    for renamed in {original_name(name)[0] for name in found}:
        del state_dict[renamed]
    state_dict.update(found)


def _own_names(head: nn.Module, prefix: str) -> Iterable[str]:
    for name, _ in head.named_parameters(prefix.removesuffix(".")):
        yield name
    for name, _ in head.named_buffers(prefix.removesuffix(".")):
        yield name


def _rename_missing(head: nn.Module, incompatible_keys: Any) -> None:
    """Report what a file lacks under the names of the file."""
    missing = incompatible_keys.missing_keys
    missing[:] = dict.fromkeys(original_name(name)[0] for name in missing)
