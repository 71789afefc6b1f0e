"""What a refusal of bad input has to be."""

import re
from typing import Any

from tests.bad_input.world import World, run

# Words that tell the reader what to do; one of them has to be in a message.
REMEDIES = """add allowed at.least choose correct delete download expected fetch finish free give
is.it is.the lower make move must need needs number outside-root
raise raises register import remove repeat replace rotate run check
set skip start take use wait""".split()
REMEDY = re.compile(rf"\b({'|'.join(REMEDIES)})\b", re.IGNORECASE)


def refused(world: World, program: str, capfd: Any, *named: str, words: list | None = None) -> str:
    """Run a program, which has to refuse its input as it should; the message.

    Args:
        named: what the message has to name: the file, and the record in it.
        words: the command line, where it is not the program's own.
    """
    before = world.snapshot()
    capfd.readouterr()
    code = run(program, world.words(program) if words is None else words)
    err = capfd.readouterr().err
    lines = re.findall(r"wsis [a-z0-9-]+: .*", err)  # a progress bar may stand before it
    assert code == 2, f"exit code {code}; {err[-2000:]}"
    assert len(lines) == 1, err[-2000:]
    message = lines[0]
    assert "Traceback" not in err.split(message)[1]
    for text in named:
        assert text in message, f"{text!r} is not in: {message}"
    assert REMEDY.search(message), f"no remedy in: {message}"
    after = world.snapshot()
    damaged = [name for name, content in before.items() if after.get(name) != content]
    assert not damaged, f"changed: {damaged}"
    left = [name for name in after if name.endswith((".partial", ".lock"))]
    assert not left, f"left behind: {left}"
    return message
