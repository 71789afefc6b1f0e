"""Find and build the backbone that a config names."""

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone.backbone import Backbone
from detectron2.utils.registry import Registry

# Called as f(cfg, input_shape: ShapeSpec); each returns a Backbone.
BACKBONE_REGISTRY = Registry("BACKBONE")


def build_backbone(cfg: CfgNode, input_shape: ShapeSpec | None = None) -> Backbone:
    """Backbone named by `cfg.MODEL.BACKBONE.NAME`.

    Args:
        input_shape: channels of the input; by default one for each value of `MODEL.PIXEL_MEAN`.
    """
    if input_shape is None:
        input_shape = ShapeSpec(channels=len(cfg.MODEL.PIXEL_MEAN))
    name = cfg.MODEL.BACKBONE.NAME
    if name not in BACKBONE_REGISTRY:
        raise KeyError(
            f"MODEL.BACKBONE.NAME={name!r} is not registered; expected one of "
            f"{[n for n, _ in BACKBONE_REGISTRY]}"
        )
    backbone = BACKBONE_REGISTRY.get(name)(cfg, input_shape)
    if not isinstance(backbone, Backbone):
        raise ValueError(
            f"MODEL.BACKBONE.NAME={name!r} built a {type(backbone).__name__}; "
            "a registered backbone must return a detectron2.modeling.Backbone"
        )
    return backbone
