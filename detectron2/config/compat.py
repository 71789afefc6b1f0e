"""Rename config keys between the versions of their names: 0, 1 and 2 (the current one)."""

import logging
from typing import Any

from .config import CfgNode

__all__ = ["downgrade_config", "guess_version", "upgrade_config"]

# RENAMES[v]: (name in version v, name in version v + 1)
RENAMES: tuple[tuple[tuple[str, str], ...], ...] = (
    (("MODEL.RPN_HEAD.NAME", "MODEL.RPN.HEAD_NAME"),),
    (
        ("MODEL.WEIGHT", "MODEL.WEIGHTS"),
        ("MODEL.PANOPTIC_FPN.SEMANTIC_LOSS_SCALE", "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT"),
        ("MODEL.PANOPTIC_FPN.RPN_LOSS_SCALE", "MODEL.RPN.LOSS_WEIGHT"),
        ("MODEL.PANOPTIC_FPN.INSTANCE_LOSS_SCALE", "MODEL.PANOPTIC_FPN.INSTANCE_LOSS_WEIGHT"),
        ("MODEL.PANOPTIC_FPN.COMBINE_ON", "MODEL.PANOPTIC_FPN.COMBINE.ENABLED"),
        (
            "MODEL.PANOPTIC_FPN.COMBINE_OVERLAP_THRESHOLD",
            "MODEL.PANOPTIC_FPN.COMBINE.OVERLAP_THRESH",
        ),
        (
            "MODEL.PANOPTIC_FPN.COMBINE_STUFF_AREA_LIMIT",
            "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT",
        ),
        (
            "MODEL.PANOPTIC_FPN.COMBINE_INSTANCES_CONFIDENCE_THRESHOLD",
            "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH",
        ),
        ("MODEL.ROI_HEADS.SCORE_THRESH", "MODEL.ROI_HEADS.SCORE_THRESH_TEST"),
        ("MODEL.ROI_HEADS.NMS", "MODEL.ROI_HEADS.NMS_THRESH_TEST"),
        ("MODEL.RETINANET.INFERENCE_SCORE_THRESHOLD", "MODEL.RETINANET.SCORE_THRESH_TEST"),
        ("MODEL.RETINANET.INFERENCE_TOPK_CANDIDATES", "MODEL.RETINANET.TOPK_CANDIDATES_TEST"),
        ("MODEL.RETINANET.INFERENCE_NMS_THRESHOLD", "MODEL.RETINANET.NMS_THRESH_TEST"),
        ("MODEL.RPN.ANCHOR_ASPECT_RATIOS", "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS"),
        ("MODEL.RPN.ANCHOR_SIZES", "MODEL.ANCHOR_GENERATOR.SIZES"),
        ("TEST.DETECTIONS_PER_IMG", "TEST.DETECTIONS_PER_IMAGE"),
        ("TEST.AUG_ON", "TEST.AUG.ENABLED"),
        ("TEST.AUG_MIN_SIZES", "TEST.AUG.MIN_SIZES"),
        ("TEST.AUG_MAX_SIZE", "TEST.AUG.MAX_SIZE"),
        ("TEST.AUG_FLIP", "TEST.AUG.FLIP"),
    ),
)
LATEST_VERSION = len(RENAMES)
_V1_ANCHOR_KEYS = ("ANCHOR_ASPECT_RATIOS", "ANCHOR_SIZES")


def upgrade_config(cfg: CfgNode, to_version: int | None = None) -> CfgNode:
    """A copy of `cfg` with its key names brought to `to_version` (the latest by default)."""
    to_version = LATEST_VERSION if to_version is None else to_version
    if not cfg.VERSION <= to_version <= LATEST_VERSION:
        raise ValueError(f"cannot upgrade a config of VERSION {cfg.VERSION} to {to_version}")
    cfg = cfg.clone()
    for version in range(cfg.VERSION, to_version):
        if version == 1:
            _unite_anchors(cfg)
        for old, new in RENAMES[version]:
            _rename(cfg, old, new)
        cfg.VERSION = version + 1
    return cfg


def downgrade_config(cfg: CfgNode, to_version: int) -> CfgNode:
    """A copy of `cfg` with its key names brought back to `to_version`."""
    if not 0 <= to_version <= cfg.VERSION:
        raise ValueError(f"cannot downgrade a config of VERSION {cfg.VERSION} to {to_version}")
    cfg = cfg.clone()
    for version in range(cfg.VERSION - 1, to_version - 1, -1):
        for old, new in RENAMES[version]:
            _rename(cfg, new, old)
        cfg.VERSION = version
    return cfg


def guess_version(cfg: CfgNode, filename: str) -> int:
    """The version whose key names a config without VERSION uses; the latest where none tells."""
    guess = LATEST_VERSION
    for version, renames in enumerate(RENAMES):
        if any(_find(cfg, old) is not None for old, _ in renames):
            guess = version
            break
    logging.getLogger(__name__).warning(
        "Config '%s' has no VERSION; it is read as version %d", filename, guess
    )
    return guess


def _find(cfg: CfgNode, name: str) -> CfgNode | None:
    """The node that holds the key with this dotted name, if there is such a key."""
    *path, last = name.split(".")
    node: Any = cfg
    for part in path:
        node = node.get(part)
        if not isinstance(node, CfgNode):
            return None
    return node if last in node else None


def _rename(cfg: CfgNode, old: str, new: str) -> None:
    """Move a value, if it is there, to another dotted name; drop nodes that become empty."""
    holder = _find(cfg, old)
    if holder is None:
        return
    value = holder.pop(old.rpartition(".")[2])
    *path, last = new.split(".")
    node = cfg
    for part in path:
        node = node.setdefault(part, type(cfg)())
    node[last] = value
    parents = old.split(".")[:-1]
    while parents and not _get(cfg, parents):
        _get(cfg, parents[:-1]).pop(parents.pop())


def _get(cfg: CfgNode, path: list[str]) -> CfgNode:
    for part in path:
        cfg = cfg[part]
    return cfg


def _unite_anchors(cfg: CfgNode) -> None:
    """Version 1 had anchors for RetinaNet and for RPN; keep those that the architecture uses."""
    model = cfg.get("MODEL", {})
    rpn, retinanet = model.get("RPN", {}), model.get("RETINANET", {})
    for key in _V1_ANCHOR_KEYS:
        if model.get("META_ARCHITECTURE") == "RetinaNet":
            rpn.pop(key, None)
            if key in retinanet:
                _rename(cfg, f"MODEL.RETINANET.{key}", f"MODEL.RPN.{key}")
        else:
            retinanet.pop(key, None)
    for node in (rpn, retinanet):
        node.pop("ANCHOR_STRIDES", None)  # strides have come from the backbone ever since
