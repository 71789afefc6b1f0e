"""Read and write whole files: JSON, text and bytes that appear under their name only when complete.

A writer fills a temporary file beside the target, flushes it to the disk and renames it. A run that
is killed therefore leaves the old file or the new one, never half of one.
"""

import contextlib
import hashlib
import io
import json
import os
import re
import socket
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

from weaklabels.locks import PARTIAL, OutputInUse, open_locked

SURROGATE = re.compile("[\ud800-\udfff]")
LONGEST_SHOWN = 80  # characters of a wrong value in a message
# What zipfile raises for damaged and encrypted files.
ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, RuntimeError, OSError, EOFError, KeyError)
ZIP_ERRORS += (ValueError, NotImplementedError, MemoryError)
HASH_BLOCK = 1 << 20  # bytes read at a time


def dumps(value: Any, indent: int | None = None) -> str:
    """JSON text of `value`, compact or indented: equal values give equal bytes.

    Raises:
        ValueError: it holds NaN or an infinite number, which JSON does not have.
    """
    form: dict[str, Any] = {"indent": indent, "allow_nan": False}
    if indent is None:
        form["separators"] = (",", ":")
    try:
        text = json.dumps(value, ensure_ascii=indent is not None, **form)
    except ValueError as error:
        raise ValueError(f"NaN or an infinite number, which JSON does not have: {error}") from error
    if not text.isascii() and SURROGATE.search(text):  # UTF-8 has no half of a character
        text = json.dumps(value, **form)
    return text


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
    text = dumps(value, indent)
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


def read_text(path: str | Path) -> str:
    """The content of a text file, in UTF-8 with or without a mark at its begin.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is in another encoding.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a text file")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text in UTF-8 ({error}); save it as such") from error


def objects(value: Any, where: str) -> list[dict[str, Any]]:
    """`value`, which has to be a list of JSON objects; `where` begins the ValueError else."""
    if not isinstance(value, list):
        raise ValueError(f"{where} is {_shown(value)}; expected a list of objects")
    for number, entry in enumerate(value):
        if not isinstance(entry, dict):
            raise ValueError(f"{where}, number {number}, is {_shown(entry)}; expected an object")
    return value


def refuse_expanding(value: Any, limit: int = 100_000) -> None:
    """ValueError where a tree has more values than `limit`, each shared part counted every time.

    YAML's aliases let a file of a few lines stand for more values than a memory holds.
    """
    if _expanded(value, {}) > limit:
        raise ValueError(f"its aliases stand for more than {limit} values; write them out")


def _expanded(value: Any, known: dict[int, int]) -> int:
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        items = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_expanded(item, known) for item in items)
    return known[id(value)]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else text[:LONGEST_SHOWN] + "..."


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
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            stated = sum(member.file_size for member in archive.infolist())
    except ZIP_ERRORS as error:
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
