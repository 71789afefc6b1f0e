"""Configuration keys of Mask2Former, under the names of the original project."""

from detectron2.config import CfgNode

__all__ = ["add_mask2former_config"]


def add_mask2former_config(cfg: CfgNode) -> None:
    """Add `MODEL.MASK_FORMER` and `MODEL.SEM_SEG_HEAD`, in place.

    The defaults are the values of the published ResNet-50 configs. Keys of the data and the solver
    (`INPUT.DATASET_MAPPER_NAME`, `SOLVER.BACKBONE_MULTIPLIER`, ...) are detectron2's here.
    """
    head = cfg.MODEL.SEM_SEG_HEAD = CfgNode()
    head.NUM_CLASSES = 80
    head.IN_FEATURES = ["res2", "res3", "res4", "res5"]  # strides 4, 8, 16, 32
    # Pixel decoder: channels of its maps and of the mask features, layers of its encoder.
    head.CONVS_DIM = 256
    head.MASK_DIM = 256
    head.TRANSFORMER_ENC_LAYERS = 6

    node = cfg.MODEL.MASK_FORMER = CfgNode()
    # Transformer decoder. DEC_LAYERS counts the predictions: those of the queries before any layer
    # and of each of the 9 layers.
    node.DEC_LAYERS = 10
    node.NUM_OBJECT_QUERIES = 100
    node.HIDDEN_DIM = 256
    node.NHEADS = 8  # also of the pixel decoder's encoder
    node.DIM_FEEDFORWARD = 2048
    node.DROPOUT = 0.0  # also of the pixel decoder's encoder
    node.PRE_NORM = False
    node.ENFORCE_INPUT_PROJ = False  # a projection even where CONVS_DIM equals HIDDEN_DIM
    node.SIZE_DIVISIBILITY = 32

    # Losses, and the costs of the matching.
    node.DEEP_SUPERVISION = True  # of all predictions, not only the last
    node.NO_OBJECT_WEIGHT = 0.1
    node.CLASS_WEIGHT = 2.0
    node.MASK_WEIGHT = 5.0
    node.DICE_WEIGHT = 5.0
    # Points of a mask at which it is compared; this many times more are drawn, and this share are
    # the most uncertain ones of those.
    node.TRAIN_NUM_POINTS = 12544
    node.OVERSAMPLE_RATIO = 3.0
    node.IMPORTANCE_SAMPLE_RATIO = 0.75
