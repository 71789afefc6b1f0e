"""The program `wsis benchmark` under its own name."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from wsis.cli.main import program

if __name__ == "__main__":
    sys.exit(program("benchmark"))
