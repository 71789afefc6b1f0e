"""Configs by their path below `configs/`, and where Detectron2 publishes trained weights.

`get_config` and `get` know Detectron2's keys only. A config of adet needs adet's defaults:
`cfg = adet.config.get_cfg(); cfg.merge_from_file(model_zoo.get_config_file("SOLOv2/R50_3x.yaml"))`.
"""

from pathlib import Path, PurePosixPath

import torch
from torch import nn

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model

_ROOT = Path(__file__).resolve().parents[2]
# A wheel carries the configs as data of the package wsis; a checkout has them at its root.
_PLACES = (_ROOT / "wsis" / "configs", _ROOT / "configs")
CONFIG_DIR = next(filter(Path.is_dir, _PLACES), _PLACES[-1])
URL_PREFIX = "https://dl.fbaipublicfiles.com/detectron2/"

# Path of a config without its suffix -> number of the run / name of the file.
PUBLISHED = {
    "COCO-Detection/faster_rcnn_R_50_C4_1x": "137257644/model_final_721ade.pkl",
    "COCO-Detection/faster_rcnn_R_50_C4_3x": "137849393/model_final_f97cb7.pkl",
    "COCO-Detection/faster_rcnn_R_50_DC5_1x": "137847829/model_final_51d356.pkl",
    "COCO-Detection/faster_rcnn_R_50_DC5_3x": "137849425/model_final_68d202.pkl",
    "COCO-Detection/faster_rcnn_R_50_FPN_1x": "137257794/model_final_b275ba.pkl",
    "COCO-Detection/faster_rcnn_R_50_FPN_3x": "137849458/model_final_280758.pkl",
    "COCO-Detection/faster_rcnn_R_101_FPN_3x": "137851257/model_final_f6e8b1.pkl",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x": "137259246/model_final_9243eb.pkl",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_3x": "137849525/model_final_4ce675.pkl",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_DC5_1x": "137260150/model_final_4f86c3.pkl",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_DC5_3x": "137849551/model_final_84107b.pkl",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x": "137260431/model_final_a54504.pkl",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x": "137849600/model_final_f10217.pkl",
    "COCO-InstanceSegmentation/mask_rcnn_R_101_FPN_3x": "138205316/model_final_a3ec72.pkl",
    "PascalVOC-Detection/faster_rcnn_R_50_C4": "142202221/model_final_b1acc2.pkl",
    "Misc/scratch_mask_rcnn_R_50_FPN_3x_gn": "138602908/model_final_01ca85.pkl",
    "Misc/scratch_mask_rcnn_R_50_FPN_9x_gn": "183808979/model_final_da7b4c.pkl",
}


def get_checkpoint_url(config_path: str) -> str:
    """URL of the weights that Detectron2 published for one of its configs.

    Args:
        config_path: below `configs/`, e.g. "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml".
    """
    name = str(PurePosixPath(config_path).with_suffix(""))
    if name not in PUBLISHED:
        raise RuntimeError(
            f"no weights are published for {config_path}, only for {sorted(PUBLISHED)}"
        )
    return f"{URL_PREFIX}{name}/{PUBLISHED[name]}"


def get_config_file(config_path: str) -> str:
    """Path of a config file in this repository.

    Args:
        config_path: below `configs/`, e.g. "SOLOv2/R50_3x.yaml".
    """
    path = CONFIG_DIR / config_path
    if not path.is_file():
        found = sorted(str(p.relative_to(CONFIG_DIR)) for p in CONFIG_DIR.rglob("*.yaml"))
        raise RuntimeError(f"{config_path} is not in {CONFIG_DIR}, which holds {found}")
    return str(path)


def get_config(config_path: str, trained: bool = False) -> CfgNode:
    """Config in this repository, by its path below `configs/`.

    Args:
        trained: set `MODEL.WEIGHTS` to the published weights, whatever the file says.
    """
    cfg = get_cfg()
    cfg.merge_from_file(get_config_file(config_path))
    if trained:
        cfg.MODEL.WEIGHTS = get_checkpoint_url(config_path)
    return cfg


def get(config_path: str, trained: bool = False, device: str | None = None) -> nn.Module:
    """Model of a config, in training mode.

    Args:
        trained: load the published weights. If False, all weights are new: those that the config
            names are not loaded either.
        device: by default that of the config, or the CPU if there is no GPU.
    """
    cfg = get_config(config_path, trained)
    if device is not None:
        cfg.MODEL.DEVICE = device
    elif not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    if trained:
        DetectionCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    return model
