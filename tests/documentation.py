"""The commands that README and the docs show."""

import re
import shlex
from pathlib import Path

from wsis.runner import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += [ROOT / "maskrefinenet" / "README.md", ROOT / "AdelaiDet" / "README.md"]


def commands(page: Path) -> list[str]:
    """Commands of a page's shell blocks, continued lines joined, comments left out."""
    found = []
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            command = line.split(" #")[0].strip()
            if command and not command.startswith("#"):
                found.append(command)
    return list(dict.fromkeys(found))


def small_chain() -> list[str]:
    """The words of README's command that takes every stage over a few images on a CPU."""
    (command,) = (c for c in commands(ROOT / "README.md") if c.startswith("NUM_GPUS=0 "))
    return shlex.split(command)


def small_network() -> dict[str, str]:
    """That command's KEY VALUE pairs: a network and images of a size that a test can afford."""
    words = small_chain()
    words = words[words.index("scripts/coco_10p.sh") + 1 :]
    refiner = words.index("--refiner")
    del words[refiner : refiner + 2]
    return dict(zip(words[::2], words[1::2], strict=True))
