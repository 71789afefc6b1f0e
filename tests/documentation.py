"""The commands that README and the docs show, and what makes them small enough for a test."""

import re
from pathlib import Path

from wsis.runner import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += [ROOT / "maskrefinenet" / "README.md", ROOT / "AdelaiDet" / "README.md"]
# A network and images of a size that a test can afford.
SMALL_NETWORK = {
    "MODEL.DEVICE": "cpu",
    "MODEL.WEIGHTS": "",
    "SOLVER.MAX_ITER": "2",
    "SOLVER.IMS_PER_BATCH": "2",
    "DATALOADER.NUM_WORKERS": "0",
    "MODEL.RESNETS.DEPTH": "18",
    "MODEL.RESNETS.RES2_OUT_CHANNELS": "64",
    "MODEL.SOLOV2.INSTANCE_CHANNELS": "64",
    "MODEL.SOLOV2.NUM_GRIDS": "20,16,12,8,6",
    "INPUT.MIN_SIZE_TRAIN": "(160,)",
    "INPUT.MIN_SIZE_TEST": "160",
    "INPUT.MAX_SIZE_TEST": "240",
}
SMALL_REFINER = "--encoder resnet18 --weights none --size 64 --iterations 2 --batch-size 4"


def small_pipeline() -> list[str]:
    """The command that takes every stage of PointWSSIS over a few images on a CPU."""
    pairs = [word for pair in SMALL_NETWORK.items() for word in pair]
    command = ["bash", "scripts/coco_10p.sh", *pairs[:4], "--refiner", SMALL_REFINER]
    return [*command, *pairs[4:]]


def commands(page: Path) -> list[str]:
    """Commands of a page's shell blocks, continued lines joined, comments left out."""
    found = []
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            command = line.split(" #")[0].strip()
            if command and not command.startswith("#"):
                found.append(command)
    return list(dict.fromkeys(found))
