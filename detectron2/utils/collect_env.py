"""Describe the machine and the library versions, for logs and bug reports."""

import importlib
import importlib.metadata
import os
import platform
import sys

import torch
from tabulate import tabulate

__all__ = ["collect_env_info"]

_PACKAGES = (
    "torchvision",
    "numpy",
    "fvcore",
    "iopath",
    "opencv-contrib-python-headless",
    "pillow",
    "pycocotools",
    "faster-coco-eval",
)
_VARIABLES = ("DETECTRON2_DATASETS", "DETECTRON2_ENV_MODULE", "FVCORE_CACHE", "OMP_NUM_THREADS")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _gpu_rows() -> list[tuple[str, str]]:
    if not torch.cuda.is_available():
        return [("GPU", f"none that torch can use (built for CUDA {torch.version.cuda})")]
    rows = [("CUDA, cuDNN", f"{torch.version.cuda}, {torch.backends.cudnn.version()}")]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = f"{properties.total_memory / 2**30:.0f} GiB"
        capability = f"{properties.major}.{properties.minor}"
        rows.append((f"GPU {index}", f"{properties.name}, {memory}, compute {capability}"))
    return rows


def collect_env_info() -> str:
    """A text table: Python, packages, GPUs, processor threads, and the variables that we read."""
    package = importlib.import_module("detectron2")
    rows = [
        ("platform", platform.platform()),
        ("Python", sys.version.replace("\n", "")),
        ("detectron2", f"{package.__version__} @ {os.path.dirname(package.__file__)}"),
        ("torch", f"{torch.__version__} @ {os.path.dirname(torch.__file__)}"),
        ("torch threads, CPU cores", f"{torch.get_num_threads()}, {os.cpu_count()}"),
        *_gpu_rows(),
        *((name, _version(name)) for name in _PACKAGES),
        *((name, os.environ[name]) for name in _VARIABLES if name in os.environ),
    ]
    return tabulate(rows)
