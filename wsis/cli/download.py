"""Download the released checkpoints and pseudo labels, and check them.

    wsis download --subset 10p [--what teacher student ...]

The same command again continues an interrupted download.
"""

import argparse
import sys
from pathlib import Path

from wsis.cli.flags import add_flag
from wsis.download import download
from wsis.released import DRIVE_URL, FILE_NAMES, read_releases, released_path, verify


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--subset", required=True, choices=list(read_releases()))
    parser.add_argument("--what", nargs="+", choices=list(FILE_NAMES), default=list(FILE_NAMES))
    add_flag(parser, "--output", default=Path("checkpoints"), help="folder (default: checkpoints)")
    parser.add_argument("--base-url", default=DRIVE_URL, help="a mirror; the id is appended to it")


def run(args: argparse.Namespace) -> int:
    """Download every file that is missing; 1 where one of them could not be fetched."""
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
                f"wsis download: {error}\n  remedy: run the command again, or fetch {url} with a "
                f"browser and save it as {path}",
                file=sys.stderr,
            )
    return 1 if failed else 0
