"""`python -m linmu`: the command line without the console script."""

from __future__ import annotations

import sys

from linmu.cli import main

if __name__ == "__main__":
    sys.exit(main())
