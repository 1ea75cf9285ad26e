"""What every benchmark needs: turns taken in one run, medians, bandwidth, peak memory of a child, one JSON line.

The machine's speed drifts, so competitors are never timed one after the other: `interleave` lets them take turns
(A B C A B C ...) and medians are compared. The last line a benchmark prints is one JSON document.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np


def interleave(cases: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Call every case once a round, in turn, and return its results by name (seconds, as the case measured them)."""
    samples: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            samples[name].append(case())
    return samples


def medians(samples: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The median of every list."""
    return {name: statistics.median(values) for name, values in samples.items()}


def timed(call: Callable[[], object], repeats: int = 1) -> float:
    """Mean seconds of one of `repeats` calls in a row."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


BANDWIDTH_BYTES = 512 * 2**20


class Bandwidth:
    """How fast `threads` threads together read an array far larger than the caches, every byte once.

    A decode step cannot be faster than its weight bytes divided by this. Two kernels (an integer maximum, a self dot
    product) are tried and the faster one counts, so that arithmetic does not pass for memory.
    """

    def __init__(self, threads: int):
        """Allocate and touch the array."""
        self.array = np.ones(BANDWIDTH_BYTES // 4, dtype=np.float32)
        # Many pieces per thread, so that a thread the system holds up does not make the other one wait.
        self.parts = np.array_split(self.array, 16 * threads)
        self.pool = ThreadPoolExecutor(threads)

    def seconds(self) -> float:
        """Seconds of one whole read now."""
        # einsum, not dot: BLAS would start threads of its own.
        kernels = (lambda part: part.view(np.int64).max(), lambda part: np.einsum("i,i->", part, part))
        return min(timed(partial(self._read, kernel)) for kernel in kernels)

    def _read(self, kernel: Callable[[np.ndarray], Any]) -> None:
        for _ in self.pool.map(kernel, self.parts):
            pass


def peak_rss_bytes() -> int:
    """The largest resident memory this process ever had (VmHWM); Linux only."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("no VmHWM in /proc/self/status: peak memory needs Linux")


def available_bytes() -> int:
    """Memory that a new process can take without swapping (MemAvailable); Linux only."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise OSError("no MemAvailable in /proc/meminfo: this benchmark needs Linux")


def run_child(script: str, *arguments: str, timeout_s: float) -> dict[str, Any]:
    """Run a Python script in its own process and return the JSON document on its last line.

    A child that dies or runs out of time gives {"failed": reason}: one length too many must not lose the others.
    """
    command = [sys.executable, script, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"longer than {timeout_s:.0f} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        last = done.stderr.strip().splitlines()[-1:] or ["no output"]
        return {"failed": f"exit {done.returncode}: {last[0][:300]}"}
    return json.loads(lines[-1])


def numbers(text: str) -> list[int]:
    """A command-line list of whole numbers, "512,2048" -> [512, 2048]."""
    return [int(item) for item in text.split(",")]


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    models = [line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    return {"cpu": models[0] if models else platform.processor(), "cores": os.cpu_count(), "load": os.getloadavg()[0]}


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def say(text: str) -> None:
    """Progress and tables for the reader: stderr, so that stdout ends with the JSON line."""
    print(text, file=sys.stderr, flush=True)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of one shape as aligned text; floats with three significant digits or one decimal."""
    heads = list(rows[0])
    cells = [heads, *([_cell(row[head]) for head in heads] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(heads))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.1f}" if abs(value) >= 100 else f"{value:.3g}"
    return "-" if value is None else str(value)


def finish(document: Mapping[str, Any]) -> None:
    """Print the result as the last line on stdout."""
    print(json.dumps(document, sort_keys=True), flush=True)
