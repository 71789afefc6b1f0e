"""Check this machine's GPU: the same results as on the CPU, training, memory, speed."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from wsis.cli.gpu_check import main

if __name__ == "__main__":
    sys.exit(main())
