"""Every config key that something in this repository reads, with Detectron2 v0.6's default value.

Keys of Detectron2 and AdelaiDet that nothing here acts on are listed in `upstream.py`.
"""

from .config import CfgNode as CN

_C = CN()
_C.VERSION = 2  # of the key names; older files are upgraded while loading

_C.OUTPUT_DIR = "./output"
_C.SEED = -1  # negative: a different seed in each run
_C.CUDNN_BENCHMARK = False

_C.DATASETS = CN()
_C.DATASETS.TRAIN = ()
_C.DATASETS.TEST = ()

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
_C.INPUT.CROP = CN()
_C.INPUT.CROP.ENABLED = False
_C.INPUT.CROP.TYPE = "relative_range"
_C.INPUT.CROP.SIZE = [0.9, 0.9]

_C.MODEL = CN()
_C.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
_C.MODEL.DEVICE = "cuda"
_C.MODEL.WEIGHTS = ""
_C.MODEL.PIXEL_MEAN = [103.530, 116.280, 123.675]  # of ImageNet, in the order of INPUT.FORMAT
_C.MODEL.PIXEL_STD = [1.0, 1.0, 1.0]  # the MSRA weights hold the division by it
_C.MODEL.MASK_ON = False

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
_C.SOLVER.MOMENTUM = 0.9
_C.SOLVER.NESTEROV = False
_C.SOLVER.WEIGHT_DECAY = 0.0001
_C.SOLVER.WEIGHT_DECAY_NORM = 0.0
_C.SOLVER.WEIGHT_DECAY_BIAS = None  # None: as WEIGHT_DECAY
_C.SOLVER.BIAS_LR_FACTOR = 1.0
_C.SOLVER.CLIP_GRADIENTS = CN()
_C.SOLVER.CLIP_GRADIENTS.ENABLED = False
_C.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "value"  # or "norm"
_C.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 1.0
_C.SOLVER.CLIP_GRADIENTS.NORM_TYPE = 2.0
_C.SOLVER.AMP = CN()
_C.SOLVER.AMP.ENABLED = False

_C.TEST = CN()
_C.TEST.EVAL_PERIOD = 0  # iterations; 0: only after the last one
_C.TEST.EXPECTED_RESULTS = []  # of [task, metric, value, tolerance], checked after an evaluation
_C.TEST.PRECISE_BN = CN()
_C.TEST.PRECISE_BN.ENABLED = False
_C.TEST.PRECISE_BN.NUM_ITER = 200
