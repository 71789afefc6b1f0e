"""Merge strong labels and pseudo labels into one COCO file, the student's training set."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from wsis.cli.main import program

if __name__ == "__main__":
    sys.exit(program("merge"))
