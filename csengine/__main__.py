"""`python -m csengine` is the command line `csengine`."""

import sys

from csengine.cli import main

if __name__ == "__main__":
    sys.exit(main())
