"""A compiler that a signal ends in the middle of a line, for test_compiler.py: `CUT_OFF_SIGNAL` says by which.

With `CUT_OFF_ANSWER` it says that first; stderr ends within a character, as a cut text can.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    sys.stdin.readline()
    os.write(1, b'{"step": ["compiling", 3, 17]}\n')
    os.write(1, os.environ.get("CUT_OFF_ANSWER", "").encode())
    os.write(2, "building tactics f\u00fcr".encode()[:-2])
    os.write(1, b'{"seconds": 2.5, "engine_by')
    os.kill(os.getpid(), int(os.environ["CUT_OFF_SIGNAL"]))
