"""Configuration keys of DINO."""

from detectron2.config import CfgNode

__all__ = ["add_dino_config"]


def add_dino_config(cfg: CfgNode) -> None:
    """Add `MODEL.DINO`; the values are those of mmdetection's DINO with four scales."""
    node = cfg.MODEL.DINO = CfgNode()
    node.NUM_CLASSES = 80
    node.IN_FEATURES = ["res3", "res4", "res5"]
    node.NUM_LEVELS = 4  # the maps of IN_FEATURES, and smaller ones made from the last
    node.NUM_QUERIES = 900
    node.HIDDEN_DIM = 256
    node.NUM_HEADS = 8
    node.NUM_POINTS = 4  # of a head on each level
    node.FFN_DIM = 2048
    node.ENC_LAYERS = 6
    node.DEC_LAYERS = 6
    node.DROPOUT = 0.0
    node.PE_TEMPERATURE = 20

    # Denoising: queries (0: none), share of changed classes, shift of boxes in half sizes.
    node.DN_QUERIES = 100
    node.DN_LABEL_NOISE = 0.5
    node.DN_BOX_NOISE = 1.0

    node.COST_CLASS = 2.0
    node.COST_BBOX = 5.0
    node.COST_GIOU = 2.0
    node.CLASS_WEIGHT = 1.0
    node.BBOX_WEIGHT = 5.0
    node.GIOU_WEIGHT = 2.0
    node.FOCAL_ALPHA = 0.25
    node.FOCAL_GAMMA = 2.0

    # From iteration OPERATE_ITER on, the share QUANTILE of the matched queries with the largest
    # classification loss adds nothing to the losses.
    drop = node.INSTANCE_DROP = CfgNode()
    drop.ISON = False
    drop.QUANTILE = 0.1
    drop.OPERATE_ITER = 0

    # Left out of the training: images and boxes with a shorter side, pixels of the file.
    node.MIN_IMAGE_SIDE = 0
    node.MIN_BOX_SIDE = 0
    node.NMS_THRESH_TTA = 0.6  # of TEST.AUG; without it there is no NMS
