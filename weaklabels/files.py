"""Read and write whole files: JSON, text and bytes that appear under their name only when complete.

A writer fills a temporary file beside the target, flushes it to the disk and renames it. A run that
is killed therefore leaves the old file or the new one, never half of one.
"""

import contextlib
import hashlib
import io
import json
import os
import socket
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

from weaklabels.locks import PARTIAL, OutputInUse, open_locked

HASH_BLOCK = 1 << 20  # bytes read at a time


def dumps(value: Any) -> str:
    """Compact JSON text of `value`: equal values give equal bytes."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def partial_path(path: Path) -> Path:
    """Where this process writes what becomes `path`: no other process has the same name."""
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}{PARTIAL}")


@contextlib.contextmanager
def atomic_bytes(path: str | Path) -> Iterator[BinaryIO]:
    """Open `path` for writing bytes; it appears under its name only when the block ends well.

    Folders are made where they are missing. What is written until then is locked, so that
    `locks.output_lock` tells it from what a killed run left.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    try:
        handle = open_locked(partial)
        if handle is None:
            raise OutputInUse(f"{path}: {partial.name} is in use: another run writes the same file")
        with handle:
            handle.truncate(0)
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(partial, path)
        _sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_text(path: str | Path) -> Iterator[IO[str]]:
    """As `atomic_bytes`, for text in UTF-8 with line ends as given."""
    with atomic_bytes(path) as binary:
        handle = io.TextIOWrapper(binary, encoding="utf-8", newline="\n")
        yield handle
        handle.flush()
        handle.detach()


def write_json(path: str | Path, value: Any, indent: int | None = None) -> None:
    """Write `value` as one compact JSON line, or indented for people to read."""
    text = dumps(value) if indent is None else json.dumps(value, indent=indent, allow_nan=False)
    with atomic_text(path) as handle:
        handle.write(text + "\n")


def read_json(path: str | Path) -> Any:
    """The content of a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not JSON; the message names it and the place.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a JSON file")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a json file ({error}); make or fetch it again") from error


def file_sha256(path: str | Path) -> str:
    """Hex digest of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while block := handle.read(HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def refuse_inflated_zip(path: str | Path) -> None:
    """ValueError where a zip file's members are compressed, as those of torch.save never are.

    A small file could otherwise fill the memory.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            stated = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise ValueError(f"{path}: a damaged zip ({error}); make or fetch it again") from error
    if stated > os.path.getsize(path):
        raise ValueError(
            f"{path}: a zip of {os.path.getsize(path)} bytes that states {stated} bytes of "
            "content, which torch.save does not write: make or fetch it again"
        )


def missing_keys(entry: Any, keys: tuple[str, ...]) -> list[str]:
    """Which of `keys` the entry lacks: all of them where it is not a JSON object."""
    return [key for key in keys if not isinstance(entry, dict) or key not in entry]


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a power failure, where the file system offers that."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
