"""Train or evaluate a network from a config file."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from wsis.training import main

if __name__ == "__main__":
    sys.exit(main())
