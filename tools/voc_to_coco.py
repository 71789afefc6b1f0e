"""Turn the instance masks of Pascal VOC 2012 into COCO files, those of SBD with them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from wsis.cli.main import program

if __name__ == "__main__":
    sys.exit(program("voc-to-coco"))
