"""What kind of processor this is: kernels, and so the last bits of what they compute, depend on it."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
_FIELDS = ("model name", "flags", "Features", "CPU implementer", "CPU part", "CPU variant")


@cache
def cpu_kind() -> str:
    """The architecture, and the first processor's model and instruction sets where the system tells them."""
    try:
        first = CPUINFO.read_text(errors="replace").split("\n\n")[0].splitlines()
    except OSError:
        first = [platform.processor()]
    facts = [line for line in first if line.partition(":")[0].strip() in _FIELDS]
    return "\n".join([platform.machine(), *facts])
