"""Show on a CPU, in minutes, what a point per instance is worth: the whole chain and its rivals."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from wsis.recipes.quickstart import main

if __name__ == "__main__":
    sys.exit(main())
