"""Find and build the whole network that a configuration names."""

import torch
from torch import nn

from detectron2.config import CfgNode
from detectron2.utils.registry import Registry

__all__ = ["META_ARCH_REGISTRY", "build_model"]

META_ARCH_REGISTRY = Registry("META_ARCH")
META_ARCH_REGISTRY.__doc__ = """
Whole networks, callable as `f(cfg)`; `MODEL.META_ARCHITECTURE` chooses one. A call of the network
takes a list of dicts, one an image; see the data set mapper for their keys.
"""


def build_model(cfg: CfgNode) -> nn.Module:
    """Network `cfg.MODEL.META_ARCHITECTURE` on `cfg.MODEL.DEVICE`; no weights are loaded."""
    name = cfg.MODEL.META_ARCHITECTURE
    if name not in META_ARCH_REGISTRY:
        raise KeyError(
            f"MODEL.META_ARCHITECTURE={name!r} is not registered: import the package that defines "
            f"it first (adet.modeling for SOLOv2). Registered: {[n for n, _ in META_ARCH_REGISTRY]}"
        )
    model = META_ARCH_REGISTRY.get(name)(cfg)
    return model.to(torch.device(cfg.MODEL.DEVICE))
