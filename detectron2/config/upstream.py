"""Config keys of Detectron2, AdelaiDet and Mask2Former that nothing here reads.

Their YAML files must load unchanged, so these keys are accepted, dropped, and named in one warning.
Any other unknown key is an error. A key with a default (here or in adet) is not dropped.
"""

import difflib
import logging
from collections.abc import Callable

# Dotted name of a node ("" is the root) -> names of its values.
_NAMES_BY_NODE = {
    "GLOBAL": "HACK",
    "INPUT": "IS_ROTATE",
    "INPUT.CROP": "CROP_INSTANCE",
    "MODEL": "FCPOSE_ON KEYPOINT_ON MOBILENET",
    "MODEL.ANCHOR_GENERATOR": "ANGLES",
    "MODEL.BACKBONE": "ANTI_ALIAS",
    "MODEL.BASIS_MODULE": (
        "ANN_SET COMMON_STRIDE CONVS_DIM IN_FEATURES LOSS_ON LOSS_WEIGHT NAME NORM NUM_BASES "
        "NUM_CLASSES NUM_CONVS"
    ),
    "MODEL.BATEXT": (
        "CANONICAL_SIZE CONV_DIM CUSTOM_DICT EVAL_TYPE IN_FEATURES NUM_CHARS NUM_CONV "
        "POOLER_RESOLUTION POOLER_SCALES RECOGNITION_LOSS RECOGNIZER SAMPLING_RATIO USE_AET "
        "USE_COORDCONV VOC_SIZE"
    ),
    "MODEL.BLENDMASK": (
        "ATTN_SIZE BOTTOM_RESOLUTION INSTANCE_LOSS_WEIGHT POOLER_SAMPLING_RATIO POOLER_SCALES "
        "POOLER_TYPE TOP_INTERP VISUALIZE"
    ),
    "MODEL.BOXINST": "BOTTOM_PIXELS_REMOVED ENABLED",
    "MODEL.BOXINST.PAIRWISE": "COLOR_THRESH DILATION SIZE WARMUP_ITERS",
    "MODEL.BiFPN": "IN_FEATURES NORM NUM_REPEATS OUT_CHANNELS",
    "MODEL.CONDINST": "BOTTOM_PIXELS_REMOVED MASK_OUT_STRIDE MAX_PROPOSALS TOPK_PROPOSALS_PER_IM",
    "MODEL.CONDINST.MASK_BRANCH": (
        "CHANNELS IN_FEATURES NORM NUM_CONVS OUT_CHANNELS SEMANTIC_LOSS_ON"
    ),
    "MODEL.CONDINST.MASK_HEAD": "CHANNELS DISABLE_REL_COORDS NUM_LAYERS USE_FP16",
    "MODEL.DLA": "CONV_BODY NORM OUT_FEATURES",
    "MODEL.FCOS": (
        "BOX_QUALITY CENTER_SAMPLE FPN_STRIDES INFERENCE_TH_TEST INFERENCE_TH_TRAIN IN_FEATURES "
        "LOC_LOSS_TYPE LOSS_ALPHA LOSS_GAMMA LOSS_NORMALIZER_CLS LOSS_WEIGHT_CLS NMS_TH NORM "
        "NUM_BOX_CONVS NUM_CLASSES NUM_CLS_CONVS NUM_SHARE_CONVS POST_NMS_TOPK_TEST "
        "POST_NMS_TOPK_TRAIN POS_RADIUS PRE_NMS_TOPK_TEST PRE_NMS_TOPK_TRAIN PRIOR_PROB "
        "SIZES_OF_INTEREST THRESH_WITH_CTR TOP_LEVELS USE_DEFORMABLE USE_RELU USE_SCALE "
        "YIELD_BOX_FEATURES YIELD_PROPOSAL"
    ),
    "MODEL.FCPOSE": (
        "ATTN_LEN DISTANCE_NORM DYNAMIC_CHANNELS FOCAL_LOSS_ALPHA FOCAL_LOSS_GAMMA "
        "GT_HEATMAP_STRIDE HEAD_HEATMAP_SIGMA HEATMAP_SIGMA LOSS_WEIGHT_DIRECTION "
        "LOSS_WEIGHT_KEYPOINT MAX_PROPOSALS PROPOSALS_PER_INST SIGMA"
    ),
    "MODEL.FCPOSE.BASIS_MODULE": (
        "BN_TYPE COMMON_STRIDE CONVS_DIM LOSS_WEIGHT NUM_BASES NUM_CLASSES"
    ),
    "MODEL.INSTANCE_DROP": "RPN_DROP",
    "MODEL.MASK_FORMER": "ENC_LAYERS TRANSFORMER_DECODER_NAME TRANSFORMER_IN_FEATURE",
    "MODEL.MASK_FORMER.TEST": (
        "INSTANCE_ON OBJECT_MASK_THRESHOLD OVERLAP_THRESHOLD PANOPTIC_ON SEMANTIC_ON "
        "SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE"
    ),
    "MODEL.MEInst": (
        "AGNOSTIC CENTER_SAMPLE DIM_MASK FLAG_PARAMETERS FPN_STRIDES GCN_KERNEL_SIZE "
        "INFERENCE_TH_TEST INFERENCE_TH_TRAIN IN_FEATURES IOU_LABELS IOU_THRESHOLDS "
        "LAST_DEFORMABLE LOC_LOSS_TYPE LOSS_ALPHA LOSS_GAMMA LOSS_ON_MASK MASK_LOSS_TYPE MASK_ON "
        "MASK_SIZE NMS_TH NORM NUM_BOX_CONVS NUM_CLASSES NUM_CLS_CONVS NUM_MASK_CONVS "
        "NUM_SHARE_CONVS PATH_COMPONENTS POST_NMS_TOPK_TEST POST_NMS_TOPK_TRAIN POS_RADIUS "
        "PRE_NMS_TOPK_TEST PRE_NMS_TOPK_TRAIN PRIOR_PROB SIGMOID SIZES_OF_INTEREST "
        "THRESH_WITH_CTR TOP_LEVELS TYPE_DEFORMABLE USE_DEFORMABLE USE_GCN_IN_MASK USE_RELU "
        "USE_SCALE WHITEN"
    ),
    "MODEL.PANOPTIC_FPN": "INSTANCE_LOSS_WEIGHT",
    "MODEL.PANOPTIC_FPN.COMBINE": (
        "ENABLED INSTANCES_CONFIDENCE_THRESH OVERLAP_THRESH STUFF_AREA_LIMIT"
    ),
    "MODEL.RESNETS": "DEFORM_INTERVAL RES5_MULTI_GRID STEM_TYPE",
    "MODEL.RETINANET": (
        "BBOX_REG_LOSS_TYPE BBOX_REG_WEIGHTS FOCAL_LOSS_ALPHA FOCAL_LOSS_GAMMA IN_FEATURES "
        "IOU_LABELS IOU_THRESHOLDS NMS_THRESH_TEST NORM NUM_CLASSES NUM_CONVS PRIOR_PROB "
        "SCORE_THRESH_TEST SMOOTH_L1_LOSS_BETA TOPK_CANDIDATES_TEST"
    ),
    "MODEL.ROI_BOX_CASCADE_HEAD": "BBOX_REG_WEIGHTS IOUS",
    "MODEL.ROI_BOX_HEAD": (
        "FED_LOSS_FREQ_WEIGHT_POWER FED_LOSS_NUM_CLASSES USE_FED_LOSS USE_SIGMOID_CE"
    ),
    "MODEL.ROI_KEYPOINT_HEAD": (
        "CONV_DIMS LOSS_WEIGHT MIN_KEYPOINTS_PER_IMAGE NAME NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS "
        "NUM_KEYPOINTS POOLER_RESOLUTION POOLER_SAMPLING_RATIO POOLER_TYPE"
    ),
    "MODEL.SEM_SEG_HEAD": (
        "COMMON_STRIDE CONVS_DIM DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES IGNORE_VALUE "
        "IN_FEATURES LOSS_WEIGHT NAME NORM NUM_CLASSES PIXEL_DECODER_NAME"
    ),
    "MODEL.SOLOV2": (
        "EVAL_PSEUDO_LABEL FPN_INSTANCE_STRIDES FPN_SCALE_RANGES INSTANCE_CHANNELS "
        "INSTANCE_IN_CHANNELS INSTANCE_IN_FEATURES MASK_CHANNELS MASK_IN_CHANNELS "
        "MASK_IN_FEATURES MASK_THR MAX_PER_IMG NMS_KERNEL NMS_PRE NMS_SIGMA NMS_TYPE NORM "
        "NUM_CLASSES NUM_GRIDS NUM_INSTANCE_CONVS NUM_KERNELS NUM_MASKS PRIOR_PROB PROMPT "
        "SCORE_THR SIGMA TYPE_DCN UPDATE_THR USE_COORD_CONV USE_DCN_IN_INSTANCE"
    ),
    "MODEL.SOLOV2.LOSS": "DICE_WEIGHT FOCAL_ALPHA FOCAL_GAMMA FOCAL_USE_SIGMOID FOCAL_WEIGHT",
    "MODEL.TOP_MODULE": "DIM NAME",
    "MODEL.VOVNET": "BACKBONE_OUT_CHANNELS CONV_BODY NORM OUT_CHANNELS OUT_FEATURES",
    "TEST": "KEYPOINT_OKS_SIGMAS",
}
UPSTREAM_KEYS = {node: frozenset(names.split()) for node, names in _NAMES_BY_NODE.items()}


def is_upstream_key(name: str) -> bool:
    """Whether `name` is a listed value ("MODEL.FCOS.NORM") or node ("MODEL.FCOS")."""
    node, _, key = name.rpartition(".")
    return key in UPSTREAM_KEYS.get(node, ()) or name in UPSTREAM_KEYS


def unknown_key_message(name: str, source: str, known_names: list[str]) -> str:
    """Error text for an unknown key, with the most similar known names."""
    upstream = [_join(node, key) for node, keys in UPSTREAM_KEYS.items() for key in keys]
    last = name.rpartition(".")[2]
    same_last = [known for known in known_names if known.rpartition(".")[2] == last]
    similar = difflib.get_close_matches(name, same_last, n=1, cutoff=0)
    similar = similar or difflib.get_close_matches(name, [*known_names, *upstream], n=2)
    hint = f". Did you mean {' or '.join(similar)}?" if similar else ""
    return f"unknown config key {name} (in {source}){hint}"


def _join(node: str, key: str) -> str:
    return f"{node}.{key}" if node else key


class DroppedKeys:
    """Collect the keys that one merge drops, for one warning.

    Args:
        source: what is merged, for the warning.
        has_node: whether the config has a node with this dotted name.
    """

    def __init__(self, source: str, has_node: Callable[[str], bool]):
        self.source, self._has_node = source, has_node
        self._names: list[str] = []

    def add(self, name: str) -> None:
        self._names.append(name)

    def warn(self) -> None:
        """Log the names, if any; `NODE.*` stands for all keys of a node."""
        if not self._names:
            return
        by_node: dict[str, set[str]] = {}
        for name in self._names:
            node, _, key = name.rpartition(".")
            by_node.setdefault(node, set()).add(key)
        shown: list[str] = []
        for node, keys in by_node.items():
            is_whole = node and keys == UPSTREAM_KEYS.get(node) and not self._has_node(node)
            shown += [f"{node}.*"] if is_whole else [_join(node, key) for key in sorted(keys)]
        logging.getLogger(__name__).warning(
            "%d config keys in %s have no effect here and were dropped: %s",
            *(len(self._names), self.source, ", ".join(shown)),
        )
