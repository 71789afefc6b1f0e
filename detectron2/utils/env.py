"""Process-wide settings: random seeds and third-party libraries."""

import importlib
import importlib.util
import logging
import os
import random
import sys
from datetime import datetime
from types import ModuleType

import numpy as np
import torch

__all__ = ["TORCH_VERSION", "seed_all_rng", "setup_custom_environment", "setup_environment"]

TORCH_VERSION = tuple(int(part) for part in torch.__version__.split(".")[:2])

_environment_is_set_up = False


def seed_all_rng(seed: int | None = None) -> None:
    """Seed `random`, numpy and torch; None draws a seed that differs between processes."""
    if seed is None:
        entropy = int.from_bytes(os.urandom(2), "big")
        seed = os.getpid() + int(datetime.now().strftime("%S%f")) + entropy
        logging.getLogger(__name__).info("Using a generated random seed %d", seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    random.seed(seed)
    os.environ["PYTHONHASHSEED"] = str(seed)  # for the processes started from here


def _import_file(name: str, path: str, make_importable: bool = False) -> ModuleType:
    """Import the Python file at `path` as module `name`; optionally list it in `sys.modules`."""
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(f"{path} is no Python file that can be imported")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if make_importable:
        sys.modules[name] = module
    return module


def _configure_libraries() -> None:
    """Keep OpenCV from starting threads of its own: data loading already uses every core."""
    import cv2

    os.environ["OPENCV_OPENCL_RUNTIME"] = "disabled"
    cv2.setNumThreads(0)
    cv2.ocl.setUseOpenCL(False)


def setup_environment() -> None:
    """Configure the libraries once, then run the user's `DETECTRON2_ENV_MODULE` if that is set."""
    global _environment_is_set_up
    if _environment_is_set_up:
        return
    _environment_is_set_up = True
    _configure_libraries()
    custom_module = os.environ.get("DETECTRON2_ENV_MODULE")
    if custom_module:
        setup_custom_environment(custom_module)


def setup_custom_environment(custom_module: str) -> None:
    """Import `custom_module` (a dotted name or a `.py` path) and call its `setup_environment()`."""
    if custom_module.endswith(".py"):
        module = _import_file("detectron2.utils.env.custom_module", custom_module)
    else:
        module = importlib.import_module(custom_module)
    if not callable(getattr(module, "setup_environment", None)):
        raise ValueError(
            f"DETECTRON2_ENV_MODULE={custom_module!r} has no function setup_environment()"
        )
    module.setup_environment()
