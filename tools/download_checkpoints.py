"""Download the released checkpoints and pseudo labels of PointWSSIS, and check what arrived."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from wsis.cli.download import main

if __name__ == "__main__":
    sys.exit(main())
