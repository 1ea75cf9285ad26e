"""What a run took: memory of this process."""

from __future__ import annotations

import sys
from pathlib import Path


def peak_bytes() -> int:
    """The most memory this process ever had resident, in bytes (0 where the system does not tell)."""
    status = Path("/proc/self/status")
    if status.is_file():
        # getrusage would count what a parent used before it started us
        lines = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        if lines:
            return int(lines[0].split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
