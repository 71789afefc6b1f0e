"""Download the released files of PointWSSIS, and check what arrived.

A file gets its final name only after it was opened and its keys and shapes were compared with the
network's.
"""

from pathlib import Path

import gdown
import requests
from gdown.exceptions import DownloadError

from weaklabels.locks import output_lock
from wsis.released import verify


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
