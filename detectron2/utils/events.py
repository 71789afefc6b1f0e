"""Collect what a training run measures, and write it to JSON, TensorBoard and the terminal."""

import abc
import datetime
import json
import logging
import math
import os
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

import torch
from fvcore.common.history_buffer import HistoryBuffer
from torch import Tensor

from .file_io import PathManager

__all__ = [
    "CommonMetricPrinter",
    "EventStorage",
    "EventWriter",
    "JSONWriter",
    "TensorboardXWriter",
    "get_event_storage",
    "has_event_storage",
]

_CURRENT_STORAGE_STACK: list["EventStorage"] = []


def get_event_storage() -> "EventStorage":
    """The innermost `EventStorage` that is open as a context."""
    if not _CURRENT_STORAGE_STACK:
        raise ValueError(
            "no EventStorage is open: call get_event_storage() inside `with EventStorage(): ...`"
        )
    return _CURRENT_STORAGE_STACK[-1]


def has_event_storage() -> bool:
    """Whether an `EventStorage` is open, so that `get_event_storage()` works."""
    return bool(_CURRENT_STORAGE_STACK)


class EventStorage:
    """Scalars, images and histograms by name, each with the iteration at which it was put.

    Open it as a context (`with EventStorage(start_iter) as storage`), so that code anywhere finds
    it with `get_event_storage()`. Images and histograms are kept until a writer takes them.
    """

    def __init__(self, start_iter: int = 0):
        self._history: dict[str, HistoryBuffer] = defaultdict(HistoryBuffer)
        self._smoothing_hints: dict[str, bool] = {}
        self._latest_scalars: dict[str, tuple[float, int]] = {}
        self._iter = start_iter
        self._current_prefix = ""
        self._vis_data: list[tuple[str, Any, int]] = []
        self._histograms: list[tuple[str, Tensor, int, int]] = []

    def put_image(self, img_name: str, img_tensor: Any) -> None:
        """Keep an image: (3, H, W) or (1, H, W), uint8 in [0, 255] or float in [0, 1], RGB."""
        self._vis_data.append((img_name, img_tensor, self._iter))

    def put_scalar(
        self, name: str, value: Any, smoothing_hint: bool = True, cur_iter: int | None = None
    ) -> None:
        """Add one value (a number or a one-element tensor) to `name`, now or at `cur_iter`.

        Args:
            smoothing_hint: whether the value is noisy, so that writers show a median; the same for
                all values of one name.
        """
        name = self._current_prefix + name
        value = float(value)
        if self._smoothing_hints.setdefault(name, smoothing_hint) != smoothing_hint:
            raise ValueError(
                f"scalar {name!r} was put with smoothing_hint={not smoothing_hint} before, "
                f"now with {smoothing_hint}: give one hint per name"
            )
        at = self._iter if cur_iter is None else cur_iter
        self._history[name].update(value, at)
        self._latest_scalars[name] = (value, at)

    def put_scalars(self, *, smoothing_hint: bool = True, **kwargs: Any) -> None:
        """Add several scalars: `put_scalars(loss=loss, accuracy=accuracy)`."""
        for name, value in kwargs.items():
            self.put_scalar(name, value, smoothing_hint=smoothing_hint)

    def put_histogram(self, hist_name: str, hist_tensor: Tensor, bins: int = 1000) -> None:
        """Keep a tensor of any shape, to be written as a histogram with `bins` bins."""
        values = hist_tensor.detach().float().cpu()
        self._histograms.append((self._current_prefix + hist_name, values, self._iter, bins))

    def history(self, name: str) -> HistoryBuffer:
        """All values of one scalar; KeyError for a name that was never put."""
        if name not in self._history:
            raise KeyError(f"no scalar {name!r}; there are {sorted(self._history)}")
        return self._history[name]

    def histories(self) -> dict[str, HistoryBuffer]:
        return self._history

    def latest(self) -> dict[str, tuple[float, int]]:
        """Name -> (last value, its iteration), for every scalar."""
        return self._latest_scalars

    def latest_with_smoothing_hint(self, window_size: int = 20) -> dict[str, tuple[float, int]]:
        """Like `latest`, but noisy scalars give the median of the last `window_size` iterations."""
        return {
            name: (self._smoothed(name, window_size) if self._smoothing_hints[name] else value, at)
            for name, (value, at) in self._latest_scalars.items()
        }

    def _smoothed(self, name: str, window_size: int) -> float:
        return self._history[name].median(self.count_samples(name, window_size))

    def count_samples(self, name: str, window_size: int = 20) -> int:
        """How many values of a scalar were put in the `window_size` iterations up to its last."""
        values = self.history(name).values()
        first_iter = values[-1][1] - window_size + 1
        return sum(1 for _ in takewhile(lambda value: value[1] >= first_iter, reversed(values)))

    def smoothing_hints(self) -> dict[str, bool]:
        return self._smoothing_hints

    def step(self) -> None:
        """Go on to the next iteration."""
        self._iter += 1

    @property
    def iter(self) -> int:
        """The current iteration, counted from `start_iter`."""
        return self._iter

    @iter.setter
    def iter(self, value: int) -> None:
        self._iter = int(value)

    @property
    def iteration(self) -> int:
        return self._iter

    def __enter__(self) -> "EventStorage":
        _CURRENT_STORAGE_STACK.append(self)
        return self

    def __exit__(self, exc_type: Any, exc_value: Any, traceback: Any) -> None:
        assert _CURRENT_STORAGE_STACK[-1] is self
        _CURRENT_STORAGE_STACK.pop()

    @contextmanager
    def name_scope(self, name: str) -> Iterator[None]:
        """Put "name/" in front of every name that is put inside the context."""
        outer_prefix = self._current_prefix
        self._current_prefix = name.rstrip("/") + "/"
        try:
            yield
        finally:
            self._current_prefix = outer_prefix

    def clear_images(self) -> None:
        """Forget the images, since they are written."""
        self._vis_data = []

    def clear_histograms(self) -> None:
        """Forget the histograms, since they are written."""
        self._histograms = []


class EventWriter(abc.ABC):
    """Base of classes that write what `get_event_storage()` holds."""

    @abc.abstractmethod
    def write(self) -> None:
        """Write what is new in the current storage."""

    def close(self) -> None:  # noqa: B027 (optional to override)
        """Release files; by default there are none."""


class _NewScalars:
    """The scalars of a storage that were put since they were last taken."""

    def __init__(self, window_size: int):
        self._window_size = window_size
        self._last_iter = -1

    def take(self, storage: EventStorage) -> list[tuple[str, float, int]]:
        """(name, smoothed value, iteration) of each, by iteration."""
        latest = storage.latest_with_smoothing_hint(self._window_size)
        new = [(name, value, at) for name, (value, at) in latest.items() if at > self._last_iter]
        self._last_iter = max((at for *_, at in new), default=self._last_iter)
        return sorted(new, key=lambda scalar: scalar[2])


class JSONWriter(EventWriter):
    """Append one line of JSON per iteration to a file: {"iteration": 19, "total_loss": 0.5, ...}.

    Args:
        json_file: appended to, so that a resumed run keeps its curve.
        window_size: iterations over which noisy scalars are smoothed by their median.
    """

    def __init__(self, json_file: str, window_size: int = 20):
        self._file_handle = PathManager.open(json_file, "a")
        self._new_scalars = _NewScalars(window_size)

    def write(self) -> None:
        lines: dict[int, dict[str, float]] = defaultdict(dict)  # by iteration
        for name, value, at in self._new_scalars.take(get_event_storage()):
            lines[at] |= {name: value, "iteration": at}
        for line in lines.values():
            self._file_handle.write(json.dumps(line, sort_keys=True) + "\n")
        self._file_handle.flush()
        if hasattr(self._file_handle, "fileno"):  # remote files have none
            os.fsync(self._file_handle.fileno())

    def close(self) -> None:
        self._file_handle.close()


class TensorboardXWriter(EventWriter):
    """Write scalars, images and histograms as TensorBoard event files to `log_dir`."""

    def __init__(self, log_dir: str, window_size: int = 20, **kwargs: Any):
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        self._new_scalars = _NewScalars(window_size)
        self._writer = SummaryWriter(log_dir, **kwargs)

    def write(self) -> None:
        storage = get_event_storage()
        for scalar in self._new_scalars.take(storage):
            self._writer.add_scalar(*scalar)
        for image in storage._vis_data:
            self._writer.add_image(*image)
        storage.clear_images()
        for histogram in storage._histograms:
            self._writer.add_histogram(*histogram)
        storage.clear_histograms()

    def close(self) -> None:
        self._writer.close()


class CommonMetricPrinter(EventWriter):
    """Log progress, time left, losses, times, learning rate and memory in one line.

    Args:
        max_iter: length of the run; None leaves out progress and time left.
        window_size: iterations over which losses and times are smoothed.
    """

    BAR_WIDTH = 20

    def __init__(self, max_iter: int | None = None, window_size: int = 20):
        self.logger = logging.getLogger(__name__)
        self._max_iter = max_iter
        self._window_size = window_size
        self._last_write: tuple[int, float] | None = None  # iteration and clock, for the time left

    def _progress(self, iteration: int) -> str:
        if not self._max_iter:
            return ""
        done = min(max(iteration / self._max_iter, 0.0), 1.0)
        filled = math.floor(done * self.BAR_WIDTH)
        return f"[{'#' * filled}{'.' * (self.BAR_WIDTH - filled)}] {done:4.0%}  "

    def _eta(self, storage: EventStorage) -> str:
        """Time left, from the scalar `time` if there is one, else from this printer's clock."""
        if self._max_iter is None:
            return ""
        left = self._max_iter - storage.iter - 1
        if "time" in storage.histories():
            seconds = storage.history("time").median(1000) * left
            storage.put_scalar("eta_seconds", seconds, smoothing_hint=False)
            return f"eta: {datetime.timedelta(seconds=int(seconds))}  "
        text = ""
        if self._last_write is not None:
            last_iter, last_time = self._last_write
            per_iteration = (time.perf_counter() - last_time) / max(storage.iter - last_iter, 1)
            text = f"eta: {datetime.timedelta(seconds=int(per_iteration * left))}  "
        self._last_write = (storage.iter, time.perf_counter())
        return text

    def _median(self, storage: EventStorage, name: str, form: str) -> str:
        """`form` filled with the smoothed value of a scalar; empty when it was never put."""
        if name not in storage.histories():
            return ""
        return form.format(storage._smoothed(name, self._window_size))

    def write(self) -> None:
        storage = get_event_storage()
        if storage.iter == self._max_iter:
            return  # the run is over: what is written now belongs to an evaluation, not to progress
        names = storage.histories()
        parts = [
            self._progress(storage.iter),
            self._eta(storage),
            f"iter: {storage.iter}  ",
            *(self._median(storage, n, n + ": {:.4g}  ") for n in names if "loss" in n),
            *(self._median(storage, n, n + ": {:.4g}  ") for n in names if "[metric]" in n),
            self._median(storage, "time", "time: {:.4f}  "),
            self._median(storage, "data_time", "data_time: {:.4f}  "),
        ]
        if "lr" in names:
            parts.append(f"lr: {storage.history('lr').latest():.5g}  ")
        if torch.cuda.is_available():
            parts.append(f"max_mem: {torch.cuda.max_memory_allocated() / 2**20:.0f}M")
        self.logger.info(" " + "".join(parts).rstrip())
