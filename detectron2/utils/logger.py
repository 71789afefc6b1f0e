"""The package's loggers, rate-limited logging, and small text tables."""

import functools
import itertools
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from types import FrameType
from typing import Any, TextIO

from tabulate import tabulate
from termcolor import colored

from .file_io import PathManager

__all__ = [
    "create_small_table",
    "create_wide_table",
    "log_every_n",
    "log_every_n_seconds",
    "log_first_n",
    "setup_logger",
]

_ABBREVIATIONS = {"detectron2": "d2"}
_DATE_FORMAT = "%m/%d %H:%M:%S"
_LOG_FILE_BUFFER_BYTES = 1024


class _Formatter(logging.Formatter):
    """Shorten the package's name, and color the prefix of warnings and errors."""

    def __init__(self, root_name: str, abbrev_name: str, color: bool):
        plain = "[%(asctime)s] %(name)s %(levelname)s: %(message)s"
        colorful = colored("[%(asctime)s %(name)s]: ", "green") + "%(message)s"
        super().__init__(colorful if color else plain, _DATE_FORMAT)
        self._root_name, self._abbrev_name, self._color = root_name, abbrev_name, color

    def format(self, record: logging.LogRecord) -> str:
        original = record.name
        if original == self._root_name or original.startswith(self._root_name + "."):
            record.name = self._abbrev_name + original[len(self._root_name) :]
        text = super().format(record)
        record.name = original  # other handlers see the same record
        if not self._color or record.levelno < logging.WARNING:
            return text
        word = "ERROR" if record.levelno >= logging.ERROR else "WARNING"
        return f"{colored(word, 'red', attrs=['bold'])} {text}"


class _StdoutHandler(logging.StreamHandler):
    """Write to the current `sys.stdout`, so that it can be redirected later."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        return sys.stdout


def setup_logger(
    output: str | None = None,
    distributed_rank: int = 0,
    *,
    color: bool = True,
    name: str = "detectron2",
    abbrev_name: str | None = None,
) -> logging.Logger:
    """Make logger `name` write everything to stdout (rank 0) and to a file (every rank).

    A second call adds only what is missing.

    Args:
        output: a `.txt` or `.log` file, or a folder for `log.txt`; None: no file. Ranks above 0
            append `.rank1` and so on to the name.
        abbrev_name: shown in place of `name`; "d2" for "detectron2".
    """
    logger = logging.getLogger(name)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    abbrev_name = _ABBREVIATIONS.get(name, name) if abbrev_name is None else abbrev_name

    handlers = logger.handlers
    if distributed_rank == 0 and not any(isinstance(h, _StdoutHandler) for h in handlers):
        stdout = _StdoutHandler()
        stdout.setFormatter(_Formatter(name, abbrev_name, color))
        logger.addHandler(stdout)

    if output is not None:
        path = output if output.endswith((".txt", ".log")) else os.path.join(output, "log.txt")
        if distributed_rank > 0:
            path += f".rank{distributed_rank}"
        stream = _open_log_file(os.path.abspath(path) if "://" not in path else path)
        if not any(getattr(h, "stream", None) is stream for h in handlers):
            file = logging.StreamHandler(stream)
            file.setFormatter(_Formatter(name, abbrev_name, color=False))
            logger.addHandler(file)
    return logger


@functools.cache  # loggers of one file share its stream
def _open_log_file(path: str) -> TextIO:
    PathManager.mkdirs(os.path.dirname(path))
    # line buffering: the last lines before a crash matter most
    return PathManager.open(path, "a", buffering=1 if "://" not in path else _LOG_FILE_BUFFER_BYTES)


def _find_caller() -> tuple[str, tuple[str, int, str]]:
    """Module name of the first caller outside this file, and a key of that line."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename == __file__:
        frame = frame.f_back
    if frame is None:
        raise RuntimeError("logging was called from no module")
    module_name = frame.f_globals["__name__"]
    if module_name == "__main__":
        module_name = "detectron2"  # the logger that scripts set up
    return module_name, (frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)


_log_counter: Counter[Any] = Counter()
_log_timers: dict[Any, float] = {}


def log_first_n(
    lvl: int, msg: str, n: int = 1, *, name: str | None = None, key: str | tuple = "caller"
) -> None:
    """Log only the first `n` times.

    Args:
        name: the logger; by default that of the calling module.
        key: what counts as a duplicate: "caller" (the line of code), "message", or both.
    """
    caller_module, caller = _find_caller()
    known = {"caller": caller, "message": msg}
    parts = (key,) if isinstance(key, str) else key
    if not parts or not set(parts) <= known.keys():
        raise ValueError(f"key={key!r}; expected 'caller', 'message' or a tuple of these")
    counted = ("first", *(known[part] for part in parts))
    _log_counter[counted] += 1
    if _log_counter[counted] <= n:
        logging.getLogger(name or caller_module).log(lvl, msg)


def log_every_n(lvl: int, msg: str, n: int = 1, *, name: str | None = None) -> None:
    """Log the 1st, (n+1)th, (2n+1)th ... time that this line of code is reached."""
    caller_module, key = _find_caller()
    count = _log_counter[("every", *key)]
    _log_counter[("every", *key)] += 1
    if n == 1 or count % n == 0:
        logging.getLogger(name or caller_module).log(lvl, msg)


def log_every_n_seconds(lvl: int, msg: str, n: int = 1, *, name: str | None = None) -> None:
    """Log at most once in `n` seconds from this line of code."""
    caller_module, key = _find_caller()
    now = time.monotonic()
    last = _log_timers.get(key)
    if last is None or now - last >= n:
        logging.getLogger(name or caller_module).log(lvl, msg)
        _log_timers[key] = now


def create_small_table(small_dict: dict[str, Any]) -> str:
    """A text table with the dictionary's keys as header and its values as the one row."""
    return tabulate(
        [tuple(small_dict.values())],
        headers=list(small_dict),
        tablefmt="pipe",
        floatfmt=".3f",
        stralign="center",
        numalign="center",
    )


def create_wide_table(
    rows: Iterable[Sequence[Any]], headers: Sequence[str], side_by_side: int = 3
) -> str:
    """A text table of many short rows, several of them on one line."""
    rows = list(rows)
    lines = [
        list(itertools.chain(*rows[start : start + side_by_side]))
        for start in range(0, len(rows), side_by_side)
    ]
    headers = [*headers] * min(side_by_side, len(rows))
    return tabulate(lines, headers, tablefmt="pipe", floatfmt=".3f", numalign="left")
