"""Every config key that something here reads, with its default value in Detectron2 v0.6.

Keys of Detectron2 and AdelaiDet that nothing here reads are in `upstream.py`.
"""

from .config import CfgNode as CN

_C = CN()
_C.VERSION = 2  # of the key names

_C.OUTPUT_DIR = "./output"
_C.SEED = -1  # negative: a different seed in each run
_C.CUDNN_BENCHMARK = False
_C.VIS_PERIOD = 0  # iterations between two drawings of the training; 0: none

_C.DATASETS = CN()
_C.DATASETS.TRAIN = ()
_C.DATASETS.TEST = ()
# With MODEL.LOAD_PROPOSALS: a file for each dataset, and how many of its boxes an image keeps.
_C.DATASETS.PROPOSAL_FILES_TRAIN = ()
_C.DATASETS.PROPOSAL_FILES_TEST = ()
# 0 keeps them all, in the file's order: rows mean the same boxes after any resizing and flipping.
_C.DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN = 2000
_C.DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST = 1000

_C.DATALOADER = CN()
_C.DATALOADER.NUM_WORKERS = 4
_C.DATALOADER.ASPECT_RATIO_GROUPING = True
_C.DATALOADER.SAMPLER_TRAIN = "TrainingSampler"
_C.DATALOADER.REPEAT_THRESHOLD = 0.0
_C.DATALOADER.RANDOM_SUBSET_RATIO = 1.0  # of RandomSubsetTrainingSampler
_C.DATALOADER.FILTER_EMPTY_ANNOTATIONS = True

_C.INPUT = CN()
_C.INPUT.FORMAT = "BGR"
_C.INPUT.MASK_FORMAT = "polygon"  # or "bitmask"
_C.INPUT.MIN_SIZE_TRAIN = (800,)  # of the shortest edge, pixels
_C.INPUT.MIN_SIZE_TRAIN_SAMPLING = "choice"  # or "range": between the two given sizes
_C.INPUT.MAX_SIZE_TRAIN = 1333
_C.INPUT.MIN_SIZE_TEST = 800  # 0: no resizing
_C.INPUT.MAX_SIZE_TEST = 1333
_C.INPUT.RANDOM_FLIP = "horizontal"  # or "vertical" or "none"
_C.INPUT.HFLIP_TRAIN = True  # AdelaiDet's key: False overrules RANDOM_FLIP "horizontal"
_C.INPUT.PCA_NOISE = 0.0  # of ImageNet's color components, where white is 1
# Mask2Former's keys. A name that ends with "lsj" (coco_instance_lsj) selects large-scale jittering
# in place of MIN_SIZE_TRAIN: the image at a random scale, in a square of IMAGE_SIZE pixels.
_C.INPUT.DATASET_MAPPER_NAME = ""
_C.INPUT.IMAGE_SIZE = 1024
_C.INPUT.MIN_SCALE = 0.1
_C.INPUT.MAX_SCALE = 2.0
_C.INPUT.CROP = CN()
_C.INPUT.CROP.ENABLED = False
_C.INPUT.CROP.TYPE = "relative_range"
_C.INPUT.CROP.SIZE = [0.9, 0.9]
# Additions, for DETR's crops: how often to crop, and shortest edges, one of which the image is
# resized to before.
_C.INPUT.CROP.PROB = 1.0
_C.INPUT.CROP.MIN_SIZES = ()

_C.MODEL = CN()
_C.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
_C.MODEL.DEVICE = "cuda"
_C.MODEL.WEIGHTS = ""
_C.MODEL.PIXEL_MEAN = [103.530, 116.280, 123.675]  # of ImageNet, in the order of INPUT.FORMAT
_C.MODEL.PIXEL_STD = [1.0, 1.0, 1.0]  # the MSRA weights hold the division by it
_C.MODEL.MASK_ON = False
_C.MODEL.LOAD_PROPOSALS = False

_C.MODEL.BACKBONE = CN()
_C.MODEL.BACKBONE.NAME = "build_resnet_backbone"
_C.MODEL.BACKBONE.FREEZE_AT = 2

_C.MODEL.RESNETS = CN()
_C.MODEL.RESNETS.DEPTH = 50
_C.MODEL.RESNETS.OUT_FEATURES = ["res4"]
_C.MODEL.RESNETS.NORM = "FrozenBN"
_C.MODEL.RESNETS.NUM_GROUPS = 1
_C.MODEL.RESNETS.WIDTH_PER_GROUP = 64
_C.MODEL.RESNETS.STRIDE_IN_1X1 = True  # as in the MSRA weights; False for torchvision's
_C.MODEL.RESNETS.RES5_DILATION = 1
_C.MODEL.RESNETS.RES2_OUT_CHANNELS = 256
_C.MODEL.RESNETS.STEM_OUT_CHANNELS = 64
_C.MODEL.RESNETS.DEFORM_ON_PER_STAGE = [False, False, False, False]
_C.MODEL.RESNETS.DEFORM_MODULATED = False
_C.MODEL.RESNETS.DEFORM_NUM_GROUPS = 1

_C.MODEL.FPN = CN()
_C.MODEL.FPN.IN_FEATURES = []
_C.MODEL.FPN.OUT_CHANNELS = 256
_C.MODEL.FPN.NORM = ""
_C.MODEL.FPN.FUSE_TYPE = "sum"  # or "avg"

_C.MODEL.VGG = CN()  # VGG-16, the backbone "build_vgg_backbone"
_C.MODEL.VGG.OUT_FEATURES = ["conv5"]
_C.MODEL.VGG.WIDTH = 1.0  # factor of all channels
_C.MODEL.VGG.NORM = ""
_C.MODEL.VGG.LAST_DILATION = 1  # 2: no pooling before a dilated conv5, stride 8
_C.MODEL.VGG.LAST_RELU = True
_C.MODEL.VGG.CEIL_MODE = False

_C.MODEL.PROPOSAL_GENERATOR = CN()
_C.MODEL.PROPOSAL_GENERATOR.NAME = "RPN"  # or "PrecomputedProposals"
_C.MODEL.PROPOSAL_GENERATOR.MIN_SIZE = 0  # sides of proposals are longer, pixels

_C.MODEL.ANCHOR_GENERATOR = CN()
_C.MODEL.ANCHOR_GENERATOR.NAME = "DefaultAnchorGenerator"
# One list for each feature map, or one for all.
_C.MODEL.ANCHOR_GENERATOR.SIZES = [[32, 64, 128, 256, 512]]  # square roots of areas, pixels
_C.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = [[0.5, 1.0, 2.0]]  # height / width
_C.MODEL.ANCHOR_GENERATOR.OFFSET = 0.0  # of the center in its cell, cells

_C.MODEL.RPN = CN()
_C.MODEL.RPN.HEAD_NAME = "StandardRPNHead"
_C.MODEL.RPN.IN_FEATURES = ["res4"]
_C.MODEL.RPN.CONV_DIMS = [-1]  # -1: as many channels as before
_C.MODEL.RPN.BOUNDARY_THRESH = -1  # pixels that trained anchors may leave the image by; -1: any
_C.MODEL.RPN.IOU_THRESHOLDS = [0.3, 0.7]
_C.MODEL.RPN.IOU_LABELS = [0, -1, 1]  # background, ignored, foreground
_C.MODEL.RPN.BATCH_SIZE_PER_IMAGE = 256
_C.MODEL.RPN.POSITIVE_FRACTION = 0.5
_C.MODEL.RPN.BBOX_REG_LOSS_TYPE = "smooth_l1"  # or "giou", "diou", "ciou"
_C.MODEL.RPN.BBOX_REG_LOSS_WEIGHT = 1.0
_C.MODEL.RPN.BBOX_REG_WEIGHTS = (1.0, 1.0, 1.0, 1.0)
_C.MODEL.RPN.SMOOTH_L1_BETA = 0.0
_C.MODEL.RPN.LOSS_WEIGHT = 1.0
# Of each feature map before NMS; of the image after it.
_C.MODEL.RPN.PRE_NMS_TOPK_TRAIN = 12000
_C.MODEL.RPN.PRE_NMS_TOPK_TEST = 6000
_C.MODEL.RPN.POST_NMS_TOPK_TRAIN = 2000
_C.MODEL.RPN.POST_NMS_TOPK_TEST = 1000
_C.MODEL.RPN.NMS_THRESH = 0.7

_C.MODEL.ROI_HEADS = CN()
_C.MODEL.ROI_HEADS.NAME = "Res5ROIHeads"
_C.MODEL.ROI_HEADS.NUM_CLASSES = 80
_C.MODEL.ROI_HEADS.IN_FEATURES = ["res4"]
_C.MODEL.ROI_HEADS.IOU_THRESHOLDS = [0.5]
_C.MODEL.ROI_HEADS.IOU_LABELS = [0, 1]
_C.MODEL.ROI_HEADS.MATCHER = "iou"  # or "topk": only the 3 best proposals for each object
_C.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 512
_C.MODEL.ROI_HEADS.POSITIVE_FRACTION = 0.25
_C.MODEL.ROI_HEADS.PROPOSAL_APPEND_GT = True
_C.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.05
_C.MODEL.ROI_HEADS.NMS_THRESH_TEST = 0.5

_C.MODEL.ROI_BOX_HEAD = CN()
_C.MODEL.ROI_BOX_HEAD.NAME = ""
_C.MODEL.ROI_BOX_HEAD.PREDICTOR = "FastRCNNOutputLayers"
_C.MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE = "smooth_l1"  # or "giou", "diou", "ciou"
_C.MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT = 1.0
_C.MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
_C.MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA = 0.0
_C.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 14
_C.MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO = 0
_C.MODEL.ROI_BOX_HEAD.POOLER_TYPE = "ROIAlignV2"
_C.MODEL.ROI_BOX_HEAD.NUM_CONV = 0
_C.MODEL.ROI_BOX_HEAD.CONV_DIM = 256
_C.MODEL.ROI_BOX_HEAD.NUM_FC = 0
_C.MODEL.ROI_BOX_HEAD.FC_DIM = 1024
_C.MODEL.ROI_BOX_HEAD.NORM = ""
_C.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = False
_C.MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES = False

_C.MODEL.ROI_MASK_HEAD = CN()
_C.MODEL.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
_C.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION = 14
_C.MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO = 0
_C.MODEL.ROI_MASK_HEAD.POOLER_TYPE = "ROIAlignV2"
_C.MODEL.ROI_MASK_HEAD.NUM_CONV = 0
_C.MODEL.ROI_MASK_HEAD.CONV_DIM = 256
_C.MODEL.ROI_MASK_HEAD.NORM = ""
_C.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK = False

_C.SOLVER = CN()
_C.SOLVER.IMS_PER_BATCH = 16  # over all processes
_C.SOLVER.REFERENCE_WORLD_SIZE = 0  # 0: no scaling of the schedule by the number of processes
_C.SOLVER.MAX_ITER = 40000
_C.SOLVER.CHECKPOINT_PERIOD = 5000
_C.SOLVER.LR_SCHEDULER_NAME = "WarmupMultiStepLR"
_C.SOLVER.BASE_LR = 0.001
_C.SOLVER.BASE_LR_END = 0.0  # of the cosine schedule
_C.SOLVER.STEPS = (30000,)
_C.SOLVER.GAMMA = 0.1
_C.SOLVER.WARMUP_FACTOR = 1.0 / 1000
_C.SOLVER.WARMUP_ITERS = 1000
_C.SOLVER.WARMUP_METHOD = "linear"
_C.SOLVER.NUM_DECAYS = 3  # of WarmupStepWithFixedGammaLR
_C.SOLVER.RESCALE_INTERVAL = False  # True: the schedule starts after the warm-up
# Additions to Detectron2's keys: the optimizer, "SGD", "ADAM" or "ADAMW"; and factors on learning
# rates, [text, factor], for parameters whose names contain the text.
_C.SOLVER.OPTIMIZER = "SGD"
_C.SOLVER.LR_FACTORS = []
# Mask2Former's keys: a factor on the rate of the backbone, and the weight decay of embeddings.
_C.SOLVER.BACKBONE_MULTIPLIER = 1.0
_C.SOLVER.WEIGHT_DECAY_EMBED = None  # None: as WEIGHT_DECAY
_C.SOLVER.MOMENTUM = 0.9  # of SGD
_C.SOLVER.NESTEROV = False
_C.SOLVER.WEIGHT_DECAY = 0.0001
_C.SOLVER.WEIGHT_DECAY_NORM = 0.0
_C.SOLVER.WEIGHT_DECAY_BIAS = None  # None: as WEIGHT_DECAY
_C.SOLVER.BIAS_LR_FACTOR = 1.0
_C.SOLVER.CLIP_GRADIENTS = CN()
_C.SOLVER.CLIP_GRADIENTS.ENABLED = False
_C.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "value"  # or "norm", or "full_model": one norm for all
_C.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 1.0
_C.SOLVER.CLIP_GRADIENTS.NORM_TYPE = 2.0
_C.SOLVER.AMP = CN()
_C.SOLVER.AMP.ENABLED = False

_C.TEST = CN()
_C.TEST.EVAL_PERIOD = 0  # iterations; 0: only after the last one
_C.TEST.EXPECTED_RESULTS = []  # of [task, metric, value, tolerance], checked after an evaluation
_C.TEST.DETECTIONS_PER_IMAGE = 100
# IoUs of further APs by COCO's rule, beside those in the dataset's metadata: 0.25 for AP25.
_C.TEST.EXTRA_IOU_THRESHOLDS = ()
_C.TEST.AUG = CN()  # of one more evaluation, whose results are averages over the augmented images
_C.TEST.AUG.ENABLED = False
_C.TEST.AUG.MIN_SIZES = (400, 500, 600, 700, 800, 900, 1000, 1100, 1200)
_C.TEST.AUG.MAX_SIZE = 4000
_C.TEST.AUG.FLIP = True
# "union": detections of all images through one NMS; "average": boxes and scores of each
# precomputed proposal over all images, then one NMS.
_C.TEST.AUG.MERGE = "union"
_C.TEST.PRECISE_BN = CN()
_C.TEST.PRECISE_BN.ENABLED = False
_C.TEST.PRECISE_BN.NUM_ITER = 200


def get_cfg() -> CN:
    """A fresh copy of the default config."""
    return _C.clone()
