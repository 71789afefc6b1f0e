"""`python -m wsis COMMAND`."""

import sys

from wsis.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
