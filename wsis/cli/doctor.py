"""Look over the installation and, given files, a dataset: every fault, not only the first.

    wsis doctor
    wsis doctor --annotations strong.json --weak-annotations weak.json --image-root images --json

The exit code is 1 where something is at fault. Notes, such as images without labels, are no faults.
"""

import argparse
import importlib
import importlib.metadata
import json
import platform
import sys
from collections.abc import Iterator

import torch

from weaklabels.examine import FAULT, NOTE, Finding, examine
from wsis.cli.flags import add_flag
from wsis.errors import PACKAGES

LIBRARIES = ("torch", "torchvision", "numpy", "opencv-python-headless", "pillow", "pycocotools")
SHOWN = 20  # findings of each level in the text; --json has all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add_flag(parser, "--annotations")
    add_flag(parser, "--weak-annotations")
    add_flag(parser, "--records")
    add_flag(parser, "--image-root")
    parser.add_argument("--json", action="store_true", help="print everything found as JSON")


def installation() -> Iterator[Finding]:
    """Versions, the GPU, and packages that cannot be imported."""
    yield Finding(NOTE, f"Python {platform.python_version()} on {platform.platform()}")
    for name in LIBRARIES:
        try:
            yield Finding(NOTE, f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            yield Finding(NOTE, f"{name}: not installed under this name")
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    yield Finding(NOTE, f"GPUs: {', '.join(gpus) or 'none; --num-gpus 0 runs on the CPU'}")
    for name in PACKAGES:
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever an installation that is not whole raises
            yield Finding(FAULT, f"the package {name} cannot be imported: {error!r}")


def run(args: argparse.Namespace) -> int:
    """Print what was found; 1 where something is at fault."""
    others = (args.weak_annotations, args.records, args.image_root)
    if args.annotations is None and any(others):
        raise ValueError("give --annotations with the other files")
    found = list(installation())
    if args.annotations is not None:
        paths = (args.annotations, args.image_root, args.weak_annotations, args.records)
        found += examine(*paths)
    faults = [finding.what for finding in found if finding.level == FAULT]
    notes = [finding.what for finding in found if finding.level == NOTE]
    if args.json:
        print(json.dumps({"faults": faults, "notes": notes}, indent=1))
    else:
        print("\n".join(notes))
        for fault in faults[:SHOWN]:
            print(f"fault: {fault}", file=sys.stderr)
        more = f", {len(faults) - SHOWN} of them not shown (--json)" * (len(faults) > SHOWN)
        print(f"{len(faults)} faults{more}")
    return 1 if faults else 0
