"""`python -m refl` is the command `refl`."""

import sys

from refl.cli import main

if __name__ == "__main__":
    sys.exit(main())
