"""Image files lie below the image root, whatever a label file says, unless the user allows more.

A label file of somebody else must not choose which files of this machine are read. The commands'
flag --allow-outside-root sets the environment variable, which other processes of a job inherit.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath

ALLOWED = "WEAKLABELS_ALLOW_OUTSIDE_ROOT"  # environment variable; any text but "" allows it
REMEDY = "--allow-outside-root reads it all the same"


@contextlib.contextmanager
def outside_root_allowed(allow: bool) -> Iterator[None]:
    """Where `allow` is true, images outside the root may be read within the block."""
    before = os.environ.get(ALLOWED, "")
    if allow:
        os.environ[ALLOWED] = "1"
    try:
        yield
    finally:
        os.environ[ALLOWED] = before


def check_image_name(file_name: str) -> None:
    """ValueError where a name alone leaves the root: it is absolute or climbs with `..`."""
    if os.environ.get(ALLOWED):
        return
    path = PurePath(file_name)
    if path.is_absolute() or os.path.normpath(file_name).split(os.sep)[0] == "..":
        raise ValueError(f"file_name {file_name!r} leaves the image root: correct it; {REMEDY}")


def is_file(path: Path) -> bool:
    """`path.is_file()`, and no for what can be no name of a file, such as one that is too long."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def image_path(root: str | Path, file_name: str) -> Path:
    """The path of an image below `root`; ValueError where its name or a link leads out of it."""
    check_image_name(file_name)
    path = Path(root, file_name)
    if not os.environ.get(ALLOWED) and not _is_below(path, os.path.realpath(root)):
        raise ValueError(
            f"{path} is a link out of the image root, to {os.path.realpath(path)}: replace it by "
            f"the file; {REMEDY}"
        )
    return path


def check_links(root: str | Path, file_names: Iterable[str]) -> None:
    """`image_path` for many images of few folders, without a look at each file.

    Folders that are not there are passed over: reading the image says so.
    """
    if os.environ.get(ALLOWED):
        return
    links: dict[str, set[str]] = {}
    for name in file_names:
        check_image_name(name)
        folder, base = os.path.split(name)
        if folder not in links:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                image_path(root, folder)
                entries = os.scandir(os.path.join(root, folder))
                links[folder] = {entry.name for entry in entries if entry.is_symlink()}
        if base in links.get(folder, ()):
            image_path(root, name)


def _is_below(path: Path, real_root: str) -> bool:
    real = os.path.realpath(path)
    return real == real_root or real.startswith(real_root.rstrip(os.sep) + os.sep)
