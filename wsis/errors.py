"""Tell a user's mistake from a bug, wherever it arose: here, in a spawned rank, in a data worker.

An error of a rank or a worker arrives as the text of its traceback, so the text decides for all.
A mistake of the user is a ValueError, KeyError, OSError or ImportError (a package of an extra that
is not installed) that one of our packages raises itself, that is, in a `raise` statement and not in
a call to a library; or an error that the operating system reports about a file. Everything else is
a bug.
"""

import ast
import errno
import importlib.util
import pkgutil
import re
import traceback
from functools import cache
from pathlib import Path

PACKAGES = ("adet", "detectron2", "maskrefinenet", "weaklabels", "weaksam", "wsis")
USER_ERRORS = (ValueError, KeyError, OSError, ImportError)
# A frame of a printed traceback: its file, and its first source line.
FRAME = re.compile(
    r'^ +File "(?P<file>.+)", line \d+, in .*\n(?! +File ") +(?P<source>\S.*)\n', re.MULTILINE
)
# Behind the last frame, and the marks below its source: the exception's type and message.
FINAL_LINE = re.compile(r"^(?P<type>[A-Za-z_][\w.]*): (?P<message>.*)", re.MULTILINE | re.DOTALL)
OF_A_FILE = re.compile(r"\[Errno \d+\] [^:]+: .+", re.DOTALL)
SPACE = "free some space, or give an output on another disk; what was written whole is kept"
RIGHTS = "give another place, or the right to use this one"
PATH = "give another path"
ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), SPACE),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), RIGHTS),
    **dict.fromkeys((errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG), PATH),
    errno.ENOENT: "give the path of a file that is there",
    errno.EMFILE: "raise the limit of open files, or lower the number of workers",
}
FULL_DISK = re.compile(
    rf"^OSError: (?P<message>\[Errno ({errno.ENOSPC}|{errno.EDQUOT})\] .*)", re.MULTILINE
)


def user_message(error: BaseException) -> str | None:
    """What to tell the user; None where the error is a bug, whose traceback has to be shown."""
    text = "".join(traceback.format_exception(error)).rstrip()
    full = FULL_DISK.search(text)  # torch reports what follows from it, for example
    if full:
        return with_advice(full["message"])
    frames = list(FRAME.finditer(text))
    if not frames:
        return None
    final = FINAL_LINE.search(text, frames[-1].end())
    if final is None or not _is_user_type(final["type"]):
        return None
    message = final["message"]
    if OF_A_FILE.fullmatch(message) or _is_raised_here(frames[-1]):
        return with_advice(_unquoted(message) if final["type"] == "KeyError" else message)
    return None


def with_advice(message: str) -> str:
    """The message of the operating system, and what to do about it; others as they are."""
    found = re.match(r"\[Errno (\d+)\] ", message)
    advice = ADVICE.get(int(found[1])) if found else None
    return f"{message}: {advice}" if advice else message


def _is_user_type(name: str) -> bool:
    """Whether a type, as a traceback names it, is one of USER_ERRORS."""
    try:
        found = pkgutil.resolve_name(name if "." in name else f"builtins:{name}")
    except (ImportError, AttributeError):
        return False
    return isinstance(found, type) and issubclass(found, USER_ERRORS)


def _is_raised_here(frame: re.Match) -> bool:
    path = Path(frame["file"])
    return frame["source"].startswith("raise ") and any(map(path.is_relative_to, _folders()))


@cache
def _folders() -> list[str]:
    """The folders of our packages that are installed."""
    specs = map(importlib.util.find_spec, PACKAGES)
    return [place for spec in specs if spec for place in spec.submodule_search_locations]


def _unquoted(message: str) -> str:
    """A KeyError's message without the quotes that a traceback puts around it."""
    try:
        return str(ast.literal_eval(message))
    except (ValueError, SyntaxError):
        return message
