"""Download the released files of PointWSSIS, and check what arrived.

A file gets its final name only after it was opened and its keys and shapes were compared with the
network's.
"""

from pathlib import Path

import gdown
import requests
from gdown.exceptions import DownloadError

from weaklabels.locks import output_lock
from wsis.released import (
    DRIVE_URL,
    FILE_NAMES,
    SPLIT,
    SPLIT_FOLDER,
    Release,
    browser_url,
    released_path,
    verify,
)


def fetch(release: Release, kind: str, folder: Path, base_url: str = DRIVE_URL) -> str:
    """Download one released file into the folder of all subsets; returns what it holds.

    Args:
        base_url: a mirror; a file's id (of a file of the split, its name) is appended to it.

    Raises:
        OSError: it could not be fetched; what has arrived is kept for the next try.
        ValueError: it arrived, but is not what it should be; it is kept as `<name>.broken`.
    """
    path = released_path(folder, release.subset, kind)
    if kind not in SPLIT:
        url = base_url + release.ids[kind]
    elif base_url == DRIVE_URL:
        url = DRIVE_URL + split_file_id(path.name)
    else:
        url = base_url + path.name
    return download(url, path, kind)


def split_file_id(name: str) -> str:
    """The id of a file in the folder of the split, which has to be listed for that.

    Raises:
        OSError: it cannot be listed, or has no such file.
    """
    try:
        listed = gdown.download_folder(id=SPLIT_FOLDER, skip_download=True, quiet=True)
    except (DownloadError, requests.RequestException) as error:
        raise OSError(
            f"the folder of the split, {SPLIT_FOLDER}, cannot be listed: {error}"
        ) from error
    ids = {Path(file.path).name: file.id for file in listed}
    if name not in ids:
        raise OSError(f"the split's folder, {SPLIT_FOLDER}, has no {name}")
    return ids[name]


def missing_file(path: Path, release: Release, kind: str) -> str:
    """What to do where a file cannot be downloaded."""
    place, name = browser_url(release, kind), FILE_NAMES[kind].format(subset=release.subset)
    if kind in SPLIT:
        return f"take {name} from {place} with a browser and save it as {path}"
    return f"fetch {place} with a browser and save it as {path}"


def download(url: str, path: Path, kind: str) -> str:
    """Fetch one file, verify it and give it its name; returns what it holds.

    Raises:
        OSError: it could not be fetched; what has arrived is kept for the next try.
        ValueError: it arrived, but is not what it should be; it is kept as `<name>.broken`. Or
            another process downloads it.
    """
    with output_lock(path):
        return _download(url, path, kind)


def _download(url: str, path: Path, kind: str) -> str:
    partial = path.with_name(f"{path.name}.partial")  # kept between runs, which resume it
    try:
        fetched = gdown.download(url, str(partial), resume=True)
    except (DownloadError, requests.RequestException) as error:
        raise OSError(f"{url}: {error}") from error
    if fetched is None or not partial.exists():
        raise OSError(f"{url}: nothing arrived")
    try:
        summary = verify(partial, kind)
    except ValueError:
        partial.replace(path.with_name(f"{path.name}.broken"))
        raise
    partial.replace(path)
    return summary
