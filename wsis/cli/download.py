"""Download the released checkpoints and pseudo labels, and check them.

    wsis download --subset 10p [--what teacher student split ...]

`split` is the authors' split into strong and weak images, two annotation files.

The same command again continues an interrupted download.
"""

import argparse
import sys
from pathlib import Path

from wsis.cli.flags import add_flag
from wsis.download import fetch, missing_file
from wsis.released import DRIVE_URL, FILE_NAMES, SPLIT, read_releases, released_path, verify

WHAT = [*(kind for kind in FILE_NAMES if kind not in SPLIT), "split"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--subset", required=True, choices=list(read_releases()))
    parser.add_argument("--what", nargs="+", choices=WHAT, default=WHAT)
    add_flag(parser, "--output", default=Path("checkpoints"), help="folder (default: checkpoints)")
    parser.add_argument(
        "--base-url",
        default=DRIVE_URL,
        help="a mirror; the id is appended to it, of the split's files the name",
    )


def run(args: argparse.Namespace) -> int:
    """Download every file that is missing; 1 where one of them could not be fetched."""
    release, failed = read_releases()[args.subset], 0
    for kind in [k for what in args.what for k in (SPLIT if what == "split" else (what,))]:
        path = released_path(args.output, args.subset, kind)
        try:
            if path.exists():
                print(f"{path}: already there; {verify(path, kind)}")
            else:
                print(f"{path}: {fetch(release, kind, args.output, args.base_url)}")
        except (OSError, ValueError) as error:
            failed += 1
            print(
                f"wsis download: {error}\n  remedy: run the command again, or "
                f"{missing_file(path, release, kind)}",
                file=sys.stderr,
            )
    return 1 if failed else 0
