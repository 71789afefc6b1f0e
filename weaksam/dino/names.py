"""Names of mmdetection's checkpoints: only those of the backbone differ from ours."""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from detectron2.checkpoint.c2_model_loading import convert_torchvision_names

__all__ = ["from_mmdetection", "is_mmdetection", "to_mmdetection"]

PREFIX = "backbone."
RUNNING_MEAN = ".running_mean"  # of each batch norm; beside it torch counts the batches
COUNTER = ".num_batches_tracked"
TO_TORCHVISION = (  # whose names mmdetection's backbone has
    (r"^stem\.conv1\.norm\.", "bn1."),
    (r"^stem\.conv1\.", "conv1."),
    (r"^res(\d)\.", lambda match: f"layer{int(match[1]) - 1}."),
    (r"\.shortcut\.norm\.", ".downsample.1."),
    (r"\.shortcut\.", ".downsample.0."),
    (r"\.conv(\d)\.norm\.", r".bn\1."),
)


def is_mmdetection(names: Iterable[str]) -> bool:
    """Whether the backbone's weights have mmdetection's names."""
    return any(name.startswith(f"{PREFIX}layer1.") for name in names)


def from_mmdetection(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of an mmdetection DINO by our names; counters of batches are left out."""
    backbone = {
        name.removeprefix(PREFIX): value
        for name, value in weights.items()
        if name.startswith(PREFIX)
    }
    converted = convert_torchvision_names(backbone)
    others = {name: value for name, value in weights.items() if not name.startswith(PREFIX)}
    return {PREFIX + name: value for name, value in converted.items()} | others


def to_mmdetection(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our weights by mmdetection's names, with counters of 0 batches as it has them."""
    converted = {}
    for name, value in weights.items():
        if name.startswith(PREFIX):
            own = name.removeprefix(PREFIX)
            for pattern, replacement in TO_TORCHVISION:
                own = re.sub(pattern, replacement, own)
            name = PREFIX + own
            if name.endswith(RUNNING_MEAN):
                counter = name.removesuffix(RUNNING_MEAN) + COUNTER
                converted[counter] = torch.zeros((), dtype=torch.int64)
        converted[name] = value
    return converted
