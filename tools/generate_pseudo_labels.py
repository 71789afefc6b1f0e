"""Let a trained SOLOv2 follow the labels of a data set and write prediction records (.jsonl)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from wsis.cli.generate import main

if __name__ == "__main__":
    sys.exit(main())
