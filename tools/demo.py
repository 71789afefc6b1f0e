"""Segment images with a trained SOLOv2, guided by points or on its own, and draw the result."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from wsis.cli.demo import main

if __name__ == "__main__":
    sys.exit(main())
