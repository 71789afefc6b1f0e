"""Find and build the whole network that a config names."""

from collections.abc import Callable

import torch
from torch import nn

from detectron2.config import CfgNode
from detectron2.utils.registry import Registry

# Called as f(cfg); a network takes a list of dicts, one for each image (see `DatasetMapper`).
META_ARCH_REGISTRY = Registry("META_ARCH")


def get_meta_arch(cfg: CfgNode) -> Callable[[CfgNode], nn.Module]:
    """What is registered under `cfg.MODEL.META_ARCHITECTURE`."""
    name = cfg.MODEL.META_ARCHITECTURE
    if name not in META_ARCH_REGISTRY:
        raise KeyError(
            f"MODEL.META_ARCHITECTURE={name!r} is not registered: import the package that defines "
            f"it first (adet.modeling for SOLOv2). Registered: {[n for n, _ in META_ARCH_REGISTRY]}"
        )
    return META_ARCH_REGISTRY.get(name)


def build_model(cfg: CfgNode) -> nn.Module:
    """Network `cfg.MODEL.META_ARCHITECTURE` on `cfg.MODEL.DEVICE`, without loading weights."""
    return get_meta_arch(cfg)(cfg).to(torch.device(cfg.MODEL.DEVICE))
