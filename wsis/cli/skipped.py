"""Say at the end of a command which images it left out."""

import sys
from collections.abc import Sequence

SHOWN = 20


def tell_skipped(skipped: Sequence[str]) -> int:
    """Print a message for each image that could not be read; the exit code: 1 where one was."""
    for message in skipped[:SHOWN]:
        print(f"left out: {message}", file=sys.stderr)
    if len(skipped) > SHOWN:
        print(f"... and {len(skipped) - SHOWN} more", file=sys.stderr)
    if skipped:
        print(f"{len(skipped)} images could not be read and are left out", file=sys.stderr)
    return 1 if skipped else 0
