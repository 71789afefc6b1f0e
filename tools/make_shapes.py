"""Make the shapes dataset: small synthetic scenes in COCO layout, for trying everything."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from wsis.cli.main import program

if __name__ == "__main__":
    sys.exit(program("make-shapes"))
