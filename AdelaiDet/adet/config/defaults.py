"""Default values of the keys that adet adds to Detectron2's configuration."""

from detectron2.config import CfgNode
from detectron2.config import get_cfg as get_detectron2_cfg


def get_cfg() -> CfgNode:
    """A fresh configuration: Detectron2's defaults and `MODEL.SOLOV2`."""
    cfg = get_detectron2_cfg()
    add_solov2_config(cfg)
    return cfg


def add_solov2_config(cfg: CfgNode) -> None:
    """Add `MODEL.SOLOV2` to a configuration, in place."""
    cfg.MODEL.SOLOV2 = node = CfgNode()

    # Instance branch. Lists have one entry for each pyramid level.
    node.INSTANCE_IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    node.FPN_INSTANCE_STRIDES = [8, 8, 16, 32, 32]
    # Range of sqrt(box area) that each level learns, in input pixels: low <= size < high.
    node.FPN_SCALE_RANGES = ((1, 96), (48, 192), (96, 384), (192, 768), (384, 2048))
    node.NUM_GRIDS = [40, 36, 24, 16, 12]
    # Share of a box, around the mask's center of mass, whose cells are positive.
    node.SIGMA = 0.2
    node.INSTANCE_IN_CHANNELS = 256
    node.INSTANCE_CHANNELS = 512
    node.NUM_INSTANCE_CONVS = 4
    # Deformable convolutions are not implemented: True is an error.
    node.USE_DCN_IN_INSTANCE = False
    node.NUM_CLASSES = 80
    node.NUM_KERNELS = 256
    # "GN" or "none"
    node.NORM = "GN"
    node.USE_COORD_CONV = True
    node.PRIOR_PROB = 0.01

    # Mask branch. NUM_MASKS must equal NUM_KERNELS.
    node.MASK_IN_FEATURES = ["p2", "p3", "p4", "p5"]
    node.MASK_IN_CHANNELS = 256
    node.MASK_CHANNELS = 128
    node.NUM_MASKS = 256

    # Inference.
    node.NMS_PRE = 500
    node.SCORE_THR = 0.1
    node.UPDATE_THR = 0.05
    node.MASK_THR = 0.5
    node.MAX_PER_IMG = 100
    # "matrix" or "mask"
    node.NMS_TYPE = "matrix"
    # "gaussian" or "linear"; for Matrix NMS
    node.NMS_KERNEL = "gaussian"
    node.NMS_SIGMA = 2

    # A name of PROMPTS in modeling/solov2/prompts.py: which labels guide the network.
    node.PROMPT = "none"
    # For prompts with points. True, as in the reference: NMS between all masks of a class. False:
    # one mask a point, the best of its own; masks of different points never suppress each other.
    node.PROMPT_NMS = True
    # True: all output scores are 1, to evaluate pseudo labels as labels.
    node.EVAL_PSEUDO_LABEL = False

    node.LOSS = CfgNode()
    # Only sigmoid focal loss is implemented: False is an error.
    node.LOSS.FOCAL_USE_SIGMOID = True
    node.LOSS.FOCAL_ALPHA = 0.25
    node.LOSS.FOCAL_GAMMA = 2.0
    node.LOSS.FOCAL_WEIGHT = 1.0
    node.LOSS.DICE_WEIGHT = 3.0
