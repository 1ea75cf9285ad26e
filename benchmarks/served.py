"""A `linmu serve` process for benchmarks: started, watched, stopped."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import IO

ROOT = Path(__file__).resolve().parent.parent
NAME = "served"


@dataclass(frozen=True)
class Process:
    """A server: its process, port, and the file with what it wrote on standard error."""

    popen: subprocess.Popen[str]
    port: int
    log: Path

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self.popen.poll() is None

    def resident_mib(self) -> float:
        """Memory that it holds now, in MiB; 0 when it is gone."""
        try:
            status = Path(f"/proc/{self.popen.pid}/status").read_text()
        except OSError:
            return 0.0
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        return int(found[1]) / 1024 if found else 0.0

    def open_files(self) -> int:
        """Descriptors that it holds now."""
        try:
            return len(list(Path(f"/proc/{self.popen.pid}/fd").iterdir()))
        except OSError:
            return 0


@contextmanager
def server(bundle: Path, log: Path, *options: str) -> Iterator[Process]:
    """Serve a bundle on a free port of loopback until the context ends; SystemExit when it does not start."""
    command = [sys.executable, "-m", "linmu", "serve", str(bundle), "--port", "0", "--name", NAME, *options]
    with log.open("w") as file:
        popen = subprocess.Popen(command, stderr=file, cwd=ROOT, text=True)
        try:
            yield Process(popen, _port(popen, log), log)
        finally:
            popen.send_signal(signal.SIGINT)
            try:
                popen.wait(60)
            except subprocess.TimeoutExpired:
                popen.kill()


def _port(popen: subprocess.Popen[str], log: Path) -> int:
    for _ in range(1200):
        if found := re.search(r"listening on http://[^ ]*:(\d+):", log.read_text()):
            return int(found[1])
        if popen.poll() is not None:
            break
        time.sleep(0.1)
    raise SystemExit(f"the server did not start: {log.read_text()[-500:]}")


class Curve(Thread):
    """Memory of a server, a sample every `every_s` seconds until it is stopped."""

    def __init__(self, process: Process, every_s: float = 1.0):
        super().__init__(daemon=True)
        self._process, self._every_s, self._over = process, every_s, False
        self.resident_mib: list[float] = []
        self.start()

    def run(self) -> None:
        """Sample."""
        while not self._over:
            self.resident_mib.append(round(self._process.resident_mib(), 1))
            time.sleep(self._every_s)

    def stop(self) -> list[float]:
        """End -> all samples."""
        self._over = True
        self.join()
        return self.resident_mib


def picture() -> bytes:
    """A small PNG file."""
    from io import BytesIO

    from PIL import Image

    file: IO[bytes] = BytesIO()
    Image.new("RGB", (40, 30), (200, 30, 30)).save(file, "PNG")
    file.seek(0)
    return file.read()
