"""Make the shapes dataset: small synthetic scenes in COCO layout, for trying everything."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from weaklabels.shapes.dataset import main

if __name__ == "__main__":
    sys.exit(main())
