"""Run PointWSSIS from split to student, stage by stage: skip what is done, resume what is not."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from wsis.runner import main

if __name__ == "__main__":
    sys.exit(main())
