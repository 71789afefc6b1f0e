"""Find and build the proposal generator that a config names."""

from torch import nn

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.utils.registry import Registry

# Called as f(cfg, input_shape: dict[str, ShapeSpec]); images, maps -> proposals, losses.
PROPOSAL_GENERATOR_REGISTRY = Registry("PROPOSAL_GENERATOR")

PRECOMPUTED = "PrecomputedProposals"


def build_proposal_generator(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> nn.Module | None:
    """Proposal generator `cfg.MODEL.PROPOSAL_GENERATOR.NAME` for a backbone of this output.

    None for "PrecomputedProposals": the inputs have proposals (`MODEL.LOAD_PROPOSALS`).
    """
    name = cfg.MODEL.PROPOSAL_GENERATOR.NAME
    if name == PRECOMPUTED:
        return None
    return PROPOSAL_GENERATOR_REGISTRY.get(name)(cfg, input_shape)
