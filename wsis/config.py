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
from wsis.config_checks import check_values

# What merging raises for values of other types, unknown keys and bases that go in a circle.
UNREADABLE = (ValueError, AssertionError, KeyError, TypeError, AttributeError, RecursionError)
UNREADABLE += (IndexError, OverflowError, OSError)
LONGEST_FAULT = 600  # characters


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


def _in_a_line(error: Exception) -> str:
    """What an error says, in one line; a KeyError without its quotes."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply, or its _BASE_ leads back to it"
    text = " ".join(str(error.args[0] if isinstance(error, KeyError) else error).split())
    return text if len(text) <= LONGEST_FAULT else text[:LONGEST_FAULT] + "..."


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
    cfg.SOLVER.SKIP_NONFINITE = 0  # steps of a run that may be skipped, see `guards`
    add_weaksam_config(cfg)
    if config_file:
        path = find_config(config_file)
        try:
            cfg.merge_from_file(path)
        except (yaml.YAMLError, *UNREADABLE) as error:
            raise ValueError(f"config file {path}: {_in_a_line(error)}; correct it") from error
        if is_model_folder(config_file):
            cfg.MODEL.WEIGHTS = config_file
    try:
        cfg.merge_from_list(list(overrides))
    except (SyntaxError, *UNREADABLE) as error:
        text = " ".join(overrides)
        raise ValueError(f"config overrides {text}: {_in_a_line(error)}; correct them") from error
    if num_gpus == 0:
        cfg.MODEL.DEVICE = "cpu"
    try:
        check_values(cfg)
    except ValueError as error:
        raise ValueError(f"config {config_file or '(the defaults)'}: {error}") from error
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(
            f"MODEL.DEVICE={cfg.MODEL.DEVICE!r}, but no CUDA device was found: add --num-gpus 0 "
            "(or MODEL.DEVICE cpu) to run on the CPU"
        )
    return cfg
