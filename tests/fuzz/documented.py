"""Which errors a reader may raise: those that a command turns into one line and exit code 2."""

import linecache
import os
from pathlib import Path

from wsis.errors import PACKAGES, USER_ERRORS, user_message

BARE = "bare"  # form of inputs whose readers get no file, so that they cannot name one
OURS = tuple(f"{os.sep}{package}{os.sep}" for package in PACKAGES)


def is_documented(error: BaseException, path: Path) -> bool:
    """Whether a command would print one line that names the file, and end with exit code 2."""
    if not isinstance(error, USER_ERRORS):
        return False
    if path.name not in str(error) and not path.name.startswith(BARE):
        return False
    trace = error.__traceback__
    while trace.tb_next is not None:
        trace = trace.tb_next
    file = trace.tb_frame.f_code.co_filename
    line = linecache.getline(file, trace.tb_lineno).strip()
    if line.startswith("raise ") and any(package in file for package in OURS):
        return True
    return user_message(error) is not None
