"""Configuration keys of WeakSAM's networks."""

from detectron2.config import CfgNode
from weaksam.clues.lite0 import add_lite0_config
from weaksam.dino.config import add_dino_config
from weaksam.mask2former.config import add_mask2former_config
from weaksam.roi_drop import InstanceDropOutputLayers

__all__ = ["add_weaksam_config"]


def add_weaksam_config(cfg: CfgNode) -> None:
    """Add the keys of all networks; RoI drop also takes the place of the plain box predictor."""
    _add_wsod(cfg)
    _add_instance_drop(cfg)
    add_lite0_config(cfg)
    add_dino_config(cfg)
    add_mask2former_config(cfg)


def _add_instance_drop(cfg: CfgNode) -> None:
    """Add RoI drop; weaksam/roi_drop.py says what the values mean."""
    cfg.MODEL.ROI_BOX_HEAD.PREDICTOR = InstanceDropOutputLayers.__name__
    node = cfg.MODEL.INSTANCE_DROP = CfgNode()
    node.ISON = False
    node.THRESH_CLS = 4.0
    node.THRESH_REG = 4.0
    node.OPERATE_ITER = 2000
    node.MODE = "intersection"


def _add_wsod(cfg: CfgNode) -> None:
    """Add `MODEL.WSOD`. None leaves a value to the head that HEAD names."""
    node = cfg.MODEL.WSOD = CfgNode()
    node.HEAD = "mist"  # wsddn, oicr, mist, wsod2: weaksam/wsod/settings.py has their values
    node.NUM_REFINE = None
    node.MIL_BACKGROUND = None
    node.IMAGE_LOSS = None
    node.SEEDS = None
    node.SEED_SHARE = None
    node.SEED_IOU = None
    node.SEED_RATIO = None
    node.SEED_NMS = None
    node.FG_IOU = None
    node.MIN_ROIS = None
    node.LOSS_WEIGHTS = None
    node.BOX_REG = None
    node.BOX_LOSS_WEIGHT = None
    node.WEIGHT_STD = None
    node.DROPOUT = 0.5  # behind each layer of DropoutFCHead
    # Proposals are left out when the dataset is built where a side is shorter, original pixels.
    node.MIN_BOX_SIDE = 20
    # Proposals that go through the box head at once in training, to bound memory; 0 for all.
    node.DETACHED_HEAD_BATCH = 0

    drop = node.DROP_BLOCK = CfgNode()
    drop.ENABLED = False
    drop.PROB = 0.3
    drop.SIZE = 3
    drop.TEMPERATURE = 0.01
    drop.LOSS_WEIGHT = 0.01  # of the second pass, whose loss it raises
    drop.BASE_LR = 1e-5
    drop.GAMMA = 3.0  # at SOLVER.STEPS

    superpixels = node.SUPERPIXELS = CfgNode()
    superpixels.CALLS = 40_000  # training calls over which their influence fades
    superpixels.REGION_SIZE = 20  # pixels of the network's input
    superpixels.STRIDE = 4  # boxes are compared with a map of every so many pixels
