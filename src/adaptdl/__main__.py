"""`python -m adaptdl`."""

import sys

from adaptdl.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    sys.exit(main())
