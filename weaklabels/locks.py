"""One writer per output: a lock that names its holder and ends with it.

The lock of OUTPUT is the file `.OUTPUT.lock` beside it, locked by the kernel for one process: a
process that is killed holds nothing any more. The file itself goes when the work is done; the one
that a killed run leaves is taken over by the next.
"""

import contextlib
import errno
import fcntl
import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

PARTIAL = ".partial"  # ending of files that are being written
UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)  # file systems without locks
BUSY = (errno.EACCES, errno.EAGAIN)
UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)

_held: Counter[Path] = (
    Counter()
)  # outputs that this process has locked, and how often each was taken
logger = logging.getLogger(__name__)


class OutputInUse(ValueError):
    """Another process writes the output; the message names the process and its machine."""


@contextlib.contextmanager
def output_lock(path: str | Path) -> Iterator[None]:
    """Be the only process that writes `path`, a file or a folder, which need not exist yet.

    A process may take the lock of one output several times. Of a job of several processes the first
    takes it for all. Whoever gets it removes what killed runs were writing at `path`.

    Raises:
        OutputInUse: another process has the lock.
    """
    path = Path(os.path.abspath(path))
    if _held[path]:
        _held[path] += 1
        try:
            yield
        finally:
            _held[path] -= 1
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    try:
        handle = open_locked(lock)
    except OSError as error:
        if error.errno not in UNWRITABLE or not path.is_dir():
            raise
        lock = path / ".lock"  # a folder that may be written in one that may not
        handle = open_locked(lock)
    if handle is None:
        raise OutputInUse(
            f"{path} is being written by {_holder(lock)}: wait until it has ended, or give "
            "another output"
        )
    _held[path] = 1
    try:
        handle.truncate(0)
        handle.write(f"process {os.getpid()} on {socket.gethostname()}, since {_now()}".encode())
        handle.flush()
        remove_partial_files(path)
        yield
    finally:
        del _held[path]
        lock.unlink(missing_ok=True)  # before the lock ends: nobody else can have it yet
        handle.close()


@contextlib.contextmanager
def job_lock(
    path: str | Path, is_first: bool, gather: Callable[[str | None], list[str | None]]
) -> Iterator[None]:
    """`output_lock` for the processes of a job: the first one holds it, and all fail together.

    Args:
        gather: the values of all processes, in their order, in each of them.

    Raises:
        ValueError: another job writes the output, or it cannot be written.
    """
    with contextlib.ExitStack() as stack:
        problem = None
        if is_first:
            try:
                stack.enter_context(output_lock(path))
            except (OSError, ValueError) as error:
                problem = str(error)
        problem = gather(problem)[0]
        if problem:  # in every process: the others would report no more than a lost connection
            raise OutputInUse(problem)
        yield


def open_locked(path: Path) -> BinaryIO | None:
    """The file at `path`, made where it is missing, locked for this process; None: it is taken.

    The lock is POSIX's: it does not pass to forked processes, so that data loaders which outlive a
    killed run for some seconds do not hold it.
    """
    while True:
        handle = open(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in BUSY:
                handle.close()
                return None
            if error.errno not in UNSUPPORTED:
                handle.close()
                raise
            logger.warning("%s: this file system has no locks; start one run per output", path)
            return handle
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle.fileno()), os.stat(path)):
                return handle
        handle.close()  # its last holder has removed the file since we opened it


def remove_partial_files(path: Path) -> None:
    """Remove what killed processes were writing at `path`, or in it where it is a folder.

    Files that go with an output, such as OUTPUT.skipped.json, share its name without the suffix.
    """
    for folder, start in ((path.parent, f".{path.stem}."), (path, ".")):
        if not folder.is_dir():
            continue
        for entry in list(os.scandir(folder)):
            if entry.name.startswith(start) and entry.name.endswith(PARTIAL):
                _remove_unlocked(folder / entry.name)


def _remove_unlocked(partial: Path) -> None:
    """Remove a partial file unless its writer lives."""
    if f".{socket.gethostname()}.{os.getpid()}{PARTIAL}" in partial.name:
        return  # our own: a second handle would end its lock
    handle = open_locked(partial)
    if handle is not None:
        partial.unlink(missing_ok=True)
        handle.close()


def _holder(lock: Path) -> str:
    """Who holds a lock, as its file says."""
    with contextlib.suppress(OSError):
        return lock.read_text(encoding="utf-8", errors="replace") or "another process"
    return "another process"


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")
