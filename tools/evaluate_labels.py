"""Measure pseudo labels against hidden full masks."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from weaklabels.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
