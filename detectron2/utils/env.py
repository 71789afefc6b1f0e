"""Process-wide settings: random seeds and third-party libraries."""

import importlib
import logging
import os
import random
import runpy
import secrets

import numpy as np
import torch

__all__ = ["TORCH_VERSION", "seed_all_rng", "setup_custom_environment", "setup_environment"]

TORCH_VERSION = tuple(int(part) for part in torch.__version__.split(".")[:2])

_environment_is_set_up = False


def seed_all_rng(seed: int | None = None) -> None:
    """Seed `random`, numpy and torch; None takes a seed from the operating system's generator."""
    if seed is None:
        seed = secrets.randbits(31)
        logging.getLogger(__name__).info("No seed is given: seeding with %d", seed)
    for seed_generator in (random.seed, np.random.seed, torch.manual_seed):
        seed_generator(seed)
    os.environ["PYTHONHASHSEED"] = str(seed)  # for child processes


def _configure_libraries() -> None:
    """Keep OpenCV from starting its own threads: data loading already uses every core."""
    import cv2

    os.environ["OPENCV_OPENCL_RUNTIME"] = "disabled"
    cv2.setNumThreads(0)
    cv2.ocl.setUseOpenCL(False)


def setup_environment() -> None:
    """Configure the libraries once, then run the user's `DETECTRON2_ENV_MODULE` if it is set."""
    global _environment_is_set_up
    if _environment_is_set_up:
        return
    _environment_is_set_up = True
    _configure_libraries()
    custom_module = os.environ.get("DETECTRON2_ENV_MODULE")
    if custom_module:
        setup_custom_environment(custom_module)


def setup_custom_environment(custom_module: str) -> None:
    """Call `setup_environment()` of a module, given as a dotted name or a path of a .py file."""
    if custom_module.endswith(".py"):
        names = runpy.run_path(custom_module)
    else:
        names = vars(importlib.import_module(custom_module))
    setup = names.get("setup_environment")
    if not callable(setup):
        raise ValueError(
            f"DETECTRON2_ENV_MODULE={custom_module!r} has no function setup_environment()"
        )
    setup()
