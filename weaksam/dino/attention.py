"""Multi-scale deformable attention (Zhu et al. 2021): the module of the package `transformers`."""

import importlib.util
import math
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor, nn

__all__ = ["FlatMaps", "deformable_attention", "require_transformers"]


def require_transformers() -> None:
    """ImportError with the command that installs `transformers`, where it is not there."""
    if importlib.util.find_spec("transformers") is None:
        raise ImportError(
            "DINO needs the package transformers, which is not installed: pip install -e '.[sam]'"
        )


@dataclass(frozen=True)
class FlatMaps:
    """Feature maps of several levels, one after the other in one sequence of S places.

    values: (B, S, C).  positions: (B, S, C), their encoding.  is_padding: (B, S) bool.
    sizes_hw: of each level.  valid_ratios: (B, levels, 2), the share in x and y of each map that is
        image and not padding.
    """

    values: Tensor
    positions: Tensor
    is_padding: Tensor
    sizes_hw: list[tuple[int, int]]
    valid_ratios: Tensor

    def attend(
        self, attention: nn.Module, queries: Tensor, positions: Tensor, places: Tensor
    ) -> Tensor:
        """What deformable attention finds around places of the maps.

        Args:
            attention: of `deformable_attention`.
            queries, positions: (B, Q, C); their sum says where to look.
            places: (B, Q, levels, 2) points or (B, Q, levels, 4) boxes (center, size), in [0, 1]
                of the padded maps.

        Returns:
            (B, Q, C)
        """
        sizes = torch.tensor(self.sizes_hw, device=queries.device)
        areas = sizes.prod(dim=1)
        output, _ = attention(
            hidden_states=queries,
            attention_mask=~self.is_padding,
            encoder_hidden_states=self.values,
            position_embeddings=positions,
            reference_points=places,
            spatial_shapes=sizes,
            spatial_shapes_list=self.sizes_hw,
            level_start_index=areas.cumsum(0) - areas,
        )
        return output


def deformable_attention(dim: int, heads: int, levels: int, points: int) -> nn.Module:
    """A new attention module, which first looks into `heads` directions, 1 to `points` cells away.

    Args:
        points: places that a head looks at on each level.

    Raises:
        ImportError: `transformers` is not installed.
    """
    require_transformers()
    from transformers.models.deformable_detr.modeling_deformable_detr import (
        DeformableDetrMultiscaleDeformableAttention,
    )

    sizes = SimpleNamespace(d_model=dim, num_feature_levels=levels, disable_custom_kernels=True)
    attention = DeformableDetrMultiscaleDeformableAttention(sizes, heads, points)
    angles = torch.arange(heads) * (2 * math.pi / heads)
    directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
    directions = directions / directions.abs().amax(dim=-1, keepdim=True)  # on a square
    steps = torch.arange(1, points + 1)[None, None, :, None]
    offsets = (directions[:, None, None] * steps).expand(heads, levels, points, 2)
    with torch.no_grad():
        attention.sampling_offsets.weight.zero_()
        attention.sampling_offsets.bias.copy_(offsets.flatten())
        for parameter in attention.attention_weights.parameters():
            parameter.zero_()
        for linear in (attention.value_proj, attention.output_proj):
            nn.init.xavier_uniform_(linear.weight)
            linear.bias.zero_()
    return attention
