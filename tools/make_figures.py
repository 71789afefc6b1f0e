"""Draw the pictures of figure/ from finished quick starts."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from wsis.figures import main

if __name__ == "__main__":
    sys.exit(main())
