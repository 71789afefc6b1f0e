"""Download the released checkpoints and pseudo labels of PointWSSIS, and check what arrived.

    python tools/download_checkpoints.py --subset 10p [--what teacher student ...]

An interrupted download goes on where it stopped. A file gets its final name only after it has
been opened and its keys and shapes compared with the network's.
"""

import argparse
import sys
from pathlib import Path

import gdown
import requests
from gdown.exceptions import DownloadError

from wsis.released import DRIVE_URL, FILE_NAMES, read_releases, released_path, verify


def download(url: str, path: Path, kind: str) -> str:
    """Fetch one file, verify it and give it its name; returns what it holds.

    Raises:
        OSError: it could not be fetched; what has arrived is kept for the next try.
        ValueError: it arrived, but is not what it should be; it is kept as `<name>.broken`.
    """
    partial = path.with_name(f"{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
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


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--subset", required=True, choices=list(read_releases()))
    parser.add_argument("--what", nargs="+", choices=list(FILE_NAMES), default=list(FILE_NAMES))
    parser.add_argument("--output", type=Path, default=Path("checkpoints"))
    parser.add_argument("--base-url", default=DRIVE_URL, help="a mirror; the id is appended to it")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    release, failed = read_releases()[args.subset], 0
    for kind in args.what:
        path = released_path(args.output, args.subset, kind)
        url = args.base_url + release.ids[kind]
        try:
            if path.exists():
                print(f"{path}: already there; {verify(path, kind)}")
            else:
                print(f"{path}: {download(url, path, kind)}")
        except (OSError, ValueError) as error:
            failed += 1
            print(
                f"download_checkpoints: {error}\n  remedy: run the command again, or fetch {url} "
                f"with a browser and save it as {path}",
                file=sys.stderr,
            )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
