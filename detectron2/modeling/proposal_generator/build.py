"""Find and build the proposal generator that a configuration names."""

from torch import nn

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.utils.registry import Registry

__all__ = ["PROPOSAL_GENERATOR_REGISTRY", "build_proposal_generator"]

PROPOSAL_GENERATOR_REGISTRY = Registry("PROPOSAL_GENERATOR")
PROPOSAL_GENERATOR_REGISTRY.__doc__ = """
Networks from feature maps to proposals, callable as `f(cfg, input_shape: dict[str, ShapeSpec])`;
`MODEL.PROPOSAL_GENERATOR.NAME` chooses one.
"""

PRECOMPUTED = "PrecomputedProposals"


def build_proposal_generator(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> nn.Module | None:
    """Proposal generator `cfg.MODEL.PROPOSAL_GENERATOR.NAME` for a backbone of this output.

    None for "PrecomputedProposals": each input then holds its own (`MODEL.LOAD_PROPOSALS`).
    """
    name = cfg.MODEL.PROPOSAL_GENERATOR.NAME
    if name == PRECOMPUTED:
        return None
    return PROPOSAL_GENERATOR_REGISTRY.get(name)(cfg, input_shape)
