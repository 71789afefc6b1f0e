"""What the segmenters of the extra `[sam]` share: their packages, and a name for their weights."""

import hashlib
import importlib.util

from torch import nn

DIGEST_NUMBERS = 4096  # larger tensors are left out: the small ones tell files apart as well


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
