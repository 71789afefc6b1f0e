"""What the segmenters of the extra `[sam]` share: packages, a name for weights, SAM's frame."""

import hashlib
import importlib.util

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from weaksam.segmenters.protocol import PromptBatch

DIGEST_NUMBERS = 4096  # larger tensors are left out: the small ones tell files apart as well
ALL_PARTS = frozenset({"clicks", "background", "boxes", "masks"})  # of a prompt, which SAM takes


def require_extra(module: str, package: str) -> None:
    """ImportError with the command that installs `package`, where `module` is not there."""
    if importlib.util.find_spec(module) is None:
        raise ImportError(
            f"this segmenter needs the package {package}, which is not installed: "
            "pip install -e '.[sam]'"
        )


def weights_digest(model: nn.Module) -> str:
    """A name of a model's weights, from all its small tensors."""
    digest = hashlib.sha256()
    for key, value in model.state_dict().items():
        if value.numel() <= DIGEST_NUMBERS:
            digest.update(key.encode())
            digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def click_labels(prompts: PromptBatch) -> np.ndarray:
    """SAM's labels of clicks (G, K) int32: 1 on the object, 0 on the background."""
    if prompts.background is None:
        return np.ones(prompts.clicks.shape[:2], np.int32)
    return (~prompts.background).astype(np.int32)


def small_masks(
    logits: np.ndarray, inner_hw: tuple[int, int], side: int, small_hw: tuple[int, int]
) -> Tensor:
    """Mask prompts as SAM's encoder takes them: (G, H, W) -> (G, 1, h, w) float32.

    Args:
        inner_hw: size of the resized image in the top left corner of the square input.
        side: of that square, which the small masks cover; they are 0 outside the image.
        small_hw: size of the small masks.
    """
    inner = [
        max(1, round(few * length / side)) for few, length in zip(small_hw, inner_hw, strict=True)
    ]
    small = F.interpolate(torch.from_numpy(logits)[:, None], size=inner, mode="area")
    return F.pad(small, (0, small_hw[1] - inner[1], 0, small_hw[0] - inner[0]))


def inner_cells(features: Tensor, inner_hw: tuple[int, int], side: int) -> np.ndarray:
    """The cells of features (C, h, w) that show the image, not what pads it to a square."""
    rows, columns = (
        max(1, round(cells * length / side))
        for cells, length in zip(features.shape[-2:], inner_hw, strict=True)
    )
    return features[:, :rows, :columns].float().cpu().numpy()
