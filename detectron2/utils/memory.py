"""Fall back to the CPU when a function does not fit into GPU memory."""

import logging
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

__all__ = ["retry_if_cuda_oom"]


def _to_cpu(value: Any) -> Any:
    is_cuda_tensor = isinstance(value, torch.Tensor) and value.is_cuda
    return value.to("cpu") if is_cuda_tensor else value


def retry_if_cuda_oom(func: Callable) -> Callable:
    """Retry a stateless `func` that runs out of GPU memory: with an empty cache, then on the CPU.

    The CPU call moves tensors among the direct arguments, so its results may be on the CPU.
    """

    @wraps(func)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return func(*args, **kwargs)
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
        # outside the handler, whose traceback would keep the failed call's tensors alive
        try:
            return func(*args, **kwargs)
        except torch.cuda.OutOfMemoryError:
            logging.getLogger(__name__).warning("out of GPU memory: running %s on the CPU", func)
        cpu_kwargs = {name: _to_cpu(value) for name, value in kwargs.items()}
        return func(*map(_to_cpu, args), **cpu_kwargs)

    return wrapped
