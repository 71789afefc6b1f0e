"""Settings of a Mask2Former, and their form for `transformers`, which is imported when needed."""

import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from weaksam.segmenters.extras import require_extra

__all__ = ["HeadSettings", "LossSettings", "library", "library_config"]

LIBRARY = "transformers.models.mask2former.modeling_mask2former"
ENCODER_FEEDFORWARD = 1024  # hidden units of the pixel decoder's encoder; no key in the original
NORM_GROUPS = 32  # of the pixel decoder's group norms


@dataclass(frozen=True)
class HeadSettings:
    """Sizes of the pixel decoder and the transformer decoder; the config says what they are.

    num_stages: predictions, those of the queries before any layer and of each layer (DEC_LAYERS).
    """

    num_classes: int
    pixel_channels: int = 256
    mask_channels: int = 256
    encoder_layers: int = 6
    num_stages: int = 10
    num_queries: int = 100
    hidden_channels: int = 256
    num_heads: int = 8
    feedforward: int = 2048
    dropout: float = 0.0
    pre_norm: bool = False
    enforce_input_projection: bool = False

    def __post_init__(self) -> None:
        keys = {
            "MODEL.SEM_SEG_HEAD.CONVS_DIM": (self.pixel_channels, NORM_GROUPS),
            "MODEL.MASK_FORMER.HIDDEN_DIM": (self.hidden_channels, self.num_heads),
        }
        for key, (value, divisor) in keys.items():
            if value % divisor or value % self.num_heads:
                raise ValueError(
                    f"{key}={value}: must be a multiple of {divisor} and of "
                    f"MODEL.MASK_FORMER.NHEADS={self.num_heads}"
                )
        if self.num_stages < 2:
            raise ValueError(
                f"MODEL.MASK_FORMER.DEC_LAYERS={self.num_stages}: must be at least 2, since it "
                "counts the predictions, also those before the first layer"
            )


@dataclass(frozen=True)
class LossSettings:
    """Weights of the losses, which are also the matching's costs, and the points they look at."""

    class_weight: float = 2.0
    mask_weight: float = 5.0
    dice_weight: float = 5.0
    no_object_weight: float = 0.1
    num_points: int = 12544
    oversample_ratio: float = 3.0
    importance_ratio: float = 0.75
    deep_supervision: bool = True


def library() -> ModuleType:
    """The module of `transformers` with Mask2Former's parts.

    Raises:
        ValueError: the package is not installed.
    """
    try:
        require_extra("transformers", "transformers")
    except ImportError as error:
        raise ValueError(f"MODEL.META_ARCHITECTURE 'MaskFormer': {error}") from error
    return importlib.import_module(LIBRARY)


def library_config(head: HeadSettings, loss: LossSettings) -> Any:
    """A `transformers.Mask2FormerConfig` of these settings; its backbone is never built."""
    return library().Mask2FormerConfig(
        num_labels=head.num_classes,
        feature_size=head.pixel_channels,
        mask_feature_size=head.mask_channels,
        encoder_layers=head.encoder_layers,
        encoder_feedforward_dim=ENCODER_FEEDFORWARD,
        decoder_layers=head.num_stages,
        num_queries=head.num_queries,
        hidden_dim=head.hidden_channels,
        num_attention_heads=head.num_heads,
        dim_feedforward=head.feedforward,
        dropout=head.dropout,
        pre_norm=head.pre_norm,
        enforce_input_projection=head.enforce_input_projection,
        class_weight=loss.class_weight,
        mask_weight=loss.mask_weight,
        dice_weight=loss.dice_weight,
        no_object_weight=loss.no_object_weight,
        train_num_points=loss.num_points,
        oversample_ratio=loss.oversample_ratio,
        importance_sample_ratio=loss.importance_ratio,
    )
