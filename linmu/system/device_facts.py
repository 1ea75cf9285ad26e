"""What a device says of itself: memory, board, power mode, and load while something runs. Silent where it cannot tell.

Sources: /proc/meminfo, /proc/device-tree/model, and on a Jetson `nvpmodel -q` and `tegrastats`, whose lines differ
between boards and releases: every field is looked for by name and may be absent.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MEMINFO = Path("/proc/meminfo")
MODEL = Path("/proc/device-tree/model")
MIB = 2**20
INTERVAL_MS = 200
TIMEOUT_S = 5.0

RAM = re.compile(r"\bRAM (\d+)/(\d+)MB")
GPU_LOAD = re.compile(r"\bGR3D_FREQ (\d+)%")
RAIL = re.compile(r"\b([A-Z][A-Z0-9_]*) (-?\d+)mW(?:/-?\d+mW)+")
OLD_RAIL = re.compile(r"\b((?:POM|VDD)_[A-Z0-9_]+) (\d+)/\d+(?![\dm])")  # JetPack 4: no unit, milliwatts
POWER_MODE = re.compile(r"NV Power Mode:[ \t]*(\S[^\r\n]*?)[ \t\r]*(?:\n|$)(?:[ \t]*(\d+)[ \t\r]*(?:\n|$))?")
# Rails that already hold the others: what the whole module or board takes in.
TOTAL_RAILS = ("VIN", "VDD_IN", "POM_5V_IN")


@dataclass(frozen=True)
class HostMemory:
    """The host's memory in bytes; `available` counts what the kernel would give back, without swap."""

    total_bytes: int
    available_bytes: int


@dataclass(frozen=True)
class PowerMode:
    """The power mode of a Jetson: its name and number (None where it is not printed)."""

    name: str
    number: int | None


@dataclass(frozen=True)
class TegraSample:
    """One line of tegrastats: RAM in bytes, GPU load in percent, milliwatts now by rail (None, {}: not said)."""

    ram_bytes: int
    ram_total_bytes: int
    gpu_percent: int | None
    rails_mw: dict[str, int]

    @property
    def power_mw(self) -> int | None:
        """Milliwatts of the board's or module's input, else the sum of all rails; None without rails."""
        for name in TOTAL_RAILS:
            if name in self.rails_mw:
                return self.rails_mw[name]
        return sum(self.rails_mw.values()) if self.rails_mw else None


@dataclass(frozen=True)
class DeviceLoad:
    """What a device was seen to take while something ran; the peaks are of the whole device, not of one process."""

    samples: int
    peak_ram_bytes: int
    peak_gpu_percent: int | None
    peak_power_mw: int | None
    mean_power_mw: float | None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def parse_meminfo(text: str) -> HostMemory | None:
    """/proc/meminfo's text; None when it does not name both figures."""
    sizes = dict(re.findall(r"^(MemTotal|MemAvailable):\s+(\d+) kB", text, re.MULTILINE))
    if len(sizes) != 2:
        return None
    return HostMemory(int(sizes["MemTotal"]) * 1024, int(sizes["MemAvailable"]) * 1024)


def parse_nvpmodel(text: str) -> PowerMode | None:
    """What `nvpmodel -q` prints; None when it names no mode."""
    match = POWER_MODE.search(text)
    return PowerMode(match.group(1), None if match.group(2) is None else int(match.group(2))) if match else None


def parse_tegrastats(line: str) -> TegraSample | None:
    """One line of tegrastats; None when it has no RAM field (it is no such line)."""
    ram = RAM.search(line)
    if ram is None:
        return None
    load = GPU_LOAD.search(line)
    rails: dict[str, int] = {}
    for name, milliwatts in RAIL.findall(line) or OLD_RAIL.findall(line):
        if name != "NC":  # a channel that is not connected
            rails[name] = int(milliwatts)
    return TegraSample(int(ram.group(1)) * MIB, int(ram.group(2)) * MIB, int(load.group(1)) if load else None, rails)


def load_of(samples: list[TegraSample]) -> DeviceLoad | None:
    """The peaks and the mean power of samples; None without any."""
    if not samples:
        return None
    gpu = [sample.gpu_percent for sample in samples if sample.gpu_percent is not None]
    power = [sample.power_mw for sample in samples if sample.power_mw is not None]
    return DeviceLoad(
        len(samples),
        max(sample.ram_bytes for sample in samples),
        max(gpu, default=None),
        max(power, default=None),
        sum(power) / len(power) if power else None,
    )


def host_memory() -> HostMemory:
    """The host's memory now; zeros where the system does not tell."""
    try:
        return parse_meminfo(MEMINFO.read_text()) or HostMemory(0, 0)
    except OSError:
        return HostMemory(0, 0)


def board() -> str | None:
    """The board's name in the device tree (a Jetson has one), or None."""
    try:
        return MODEL.read_bytes().rstrip(b"\0").decode(errors="replace").strip() or None
    except OSError:
        return None


def power_mode() -> PowerMode | None:
    """The power mode, or None where nvpmodel is not there or may not be asked."""
    command = shutil.which("nvpmodel")
    if command is None:
        return None
    try:
        done = subprocess.run([command, "-q"], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return parse_nvpmodel(done.stdout)


class LoadMonitor:
    """Runs tegrastats beside a block and keeps its samples; does nothing where tegrastats is not installed."""

    def __init__(self, command: str | None = None):
        self.command = command or shutil.which("tegrastats")
        self.samples: list[TegraSample] = []
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None

    def __enter__(self) -> LoadMonitor:
        """Start it."""
        if self.command is not None:
            try:
                self._process = subprocess.Popen(
                    [self.command, "--interval", str(INTERVAL_MS)],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                )
            except OSError:
                return self
            self._reader = threading.Thread(target=self._read, daemon=True)
            self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it."""
        if self._process is not None and self._reader is not None:
            self._process.terminate()
            try:
                self._process.wait(TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._reader.join(TIMEOUT_S)

    @property
    def load(self) -> DeviceLoad | None:
        """What was seen."""
        return load_of(self.samples)

    def _read(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        for line in self._process.stdout:
            if (sample := parse_tegrastats(line)) is not None:
                self.samples.append(sample)
