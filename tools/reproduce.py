"""Evaluate a released (or own) checkpoint or pseudo-label file beside the reported figure."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from wsis.cli.reproduce import main

if __name__ == "__main__":
    sys.exit(main())
