"""Pixel decoder and transformer decoder: feature maps in, classes and masks of queries out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from weaksam.mask2former.initialization import initialize_pixel_decoder, initialize_transformer
from weaksam.mask2former.names import use_original_names
from weaksam.mask2former.settings import HeadSettings, LossSettings, library, library_config

__all__ = ["MaskFormerHead", "Stage"]


@dataclass(frozen=True)
class Stage:
    """What one stage of the decoder says of B images and Q queries.

    class_logits: (B, Q, num_classes + 1), the last one for no object.
    mask_logits: (B, Q, H / 4, W / 4) of the padded images.
    """

    class_logits: Tensor
    mask_logits: Tensor


class MaskFormerHead(nn.Module):
    """The library's pixel decoder and transformer; the state dict has the original's names."""

    def __init__(self, *, in_channels: Sequence[int], settings: HeadSettings):
        """in_channels: of the maps at strides 4, 8, 16, 32 (the last two may be finer)."""
        super().__init__()
        config = library_config(settings, LossSettings())
        self.pixel_decoder = library().Mask2FormerPixelDecoder(config, [*in_channels])
        initialize_pixel_decoder(self.pixel_decoder)
        self.predictor = Predictor(config, settings)
        use_original_names(self)

    def forward(self, features: Sequence[Tensor]) -> list[Stage]:
        """Maps of the given strides, in their order -> one result a stage, the best one last."""
        # Deformable attention needs float32: half a pixel of a sampling point counts.
        with torch.autocast(features[0].device.type, enabled=False):
            decoded = self.pixel_decoder([x.float() for x in features])
        return self.predictor(decoded.multi_scale_features, decoded.mask_features)


class Predictor(nn.Module):
    """Transformer decoder with masked attention, and the classifier of its queries."""

    def __init__(self, config: Any, settings: HeadSettings):
        super().__init__()
        self.transformer = library().Mask2FormerTransformerModule(settings.pixel_channels, config)
        # The library leaves out whole layers at random if there is dropout; the original does not.
        self.transformer.decoder.layerdrop = 0.0
        initialize_transformer(self.transformer)
        self.class_embed = nn.Linear(settings.hidden_channels, settings.num_classes + 1)

    def forward(self, maps: Sequence[Tensor], mask_features: Tensor) -> list[Stage]:
        """
        Args:
            maps: of strides 32, 16, 8.
            mask_features: (B, mask_channels, H / 4, W / 4).
        """
        decoded = self.transformer(maps, mask_features)
        queries, masks = decoded.intermediate_hidden_states, decoded.masks_queries_logits
        return [
            Stage(self.class_embed(q.transpose(0, 1)), m)  # q: (Q, B, hidden_channels)
            for q, m in zip(queries, masks, strict=True)
        ]
