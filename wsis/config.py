"""Read a configuration: a file or a shipped config by its name, then KEY VALUE overrides."""

from collections.abc import Sequence
from pathlib import Path

import torch
import yaml

from adet.config import get_cfg
from detectron2 import model_zoo
from detectron2.config import CfgNode
from weaklabels.model_folder import CONFIG, is_model_folder
from weaksam import dino, mask2former, wsod  # noqa: F401  (registers their networks)
from weaksam.config import add_weaksam_config


def find_config(config_file: str) -> str:
    """The path of a config: an existing file, that of a published model, or a shipped one.

    Args:
        config_file: "my.yaml", a folder of `wsis package`, "SOLOv2/R50_3x.yaml" or
            "configs/SOLOv2/R50_3x.yaml".

    Raises:
        FileNotFoundError: neither is there.
    """
    if Path(config_file).is_file():
        return config_file
    if is_model_folder(config_file):
        return str(Path(config_file) / CONFIG)
    try:
        return model_zoo.get_config_file(config_file.removeprefix("configs/"))
    except RuntimeError as error:
        raise FileNotFoundError(
            f"config file {config_file!r}: no such file, and no shipped config of this name; "
            f"{error}"
        ) from error


def load_config(
    config_file: str | None, overrides: Sequence[str] = (), *, num_gpus: int | None = None
) -> CfgNode:
    """The config of a file with overrides, not frozen.

    Args:
        config_file: see `find_config`; None or "" takes the defaults of all keys. The folder of a
            published model also sets MODEL.WEIGHTS to its weights.
        overrides: KEY, VALUE, KEY, VALUE, ...
        num_gpus: 0 sets MODEL.DEVICE to the CPU.

    Raises:
        ValueError: a file or value that cannot be read, or a device that is not there.
    """
    cfg = get_cfg()
    add_weaksam_config(cfg)
    if config_file:
        path = find_config(config_file)
        try:
            cfg.merge_from_file(path)
        except (yaml.YAMLError, ValueError, AssertionError) as error:
            raise ValueError(f"config file {path}: {error}") from error
        if is_model_folder(config_file):
            cfg.MODEL.WEIGHTS = config_file
    try:
        cfg.merge_from_list(list(overrides))
    except (ValueError, AssertionError, SyntaxError) as error:
        raise ValueError(f"config overrides {' '.join(overrides)}: {error}") from error
    if num_gpus == 0:
        cfg.MODEL.DEVICE = "cpu"
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(
            f"MODEL.DEVICE={cfg.MODEL.DEVICE!r}, but no CUDA device was found: add --num-gpus 0 "
            "(or MODEL.DEVICE cpu) to run on the CPU"
        )
    return cfg
