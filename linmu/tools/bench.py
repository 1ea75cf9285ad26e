"""`linmu bench`: time to first token, tokens per second, peak memory and state bytes against context length.

Every length is measured in a process of its own (`python -m bench` with a request on stdin), so that peak memory
belongs to that length alone.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from linmu.errors import InputError, LinmuError
from linmu.files.atomic import atomic_file, check_file_target
from linmu.processing import ModelInputs
from linmu.runtimes.session import Session, load
from linmu.system.components import require
from linmu.system.console import plain_text
from linmu.system.device_facts import DeviceLoad, LoadMonitor, board, power_mode
from linmu.system.meter import peak_bytes
from linmu.verification.golden import seeded_ids

WARM_UP_TOKENS = 16
WARM_UP_STEPS = 8
STEPS = 48  # measured decode steps; the median counts
CONTEXTS = (512, 2048, 8192)  # tokens


@dataclass(frozen=True)
class Row:
    """One context length: times in ms, rates in tokens per second, sizes in bytes."""

    context: int
    ttft_ms: float
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    step_ms: float
    peak_bytes: int
    state_bytes: int
    backend: str


@dataclass(frozen=True)
class DeviceReport:
    """What a Jetson said meanwhile: board, power mode, and by context length its load (of the whole device)."""

    board: str | None
    power_mode: str | None
    loads: dict[int, DeviceLoad]

    def to_lines(self) -> list[str]:
        """A line for the device and one for every length."""
        lines = [f"{self.board or 'device'}, power mode {self.power_mode or 'unknown'}"]
        for context, device_load in sorted(self.loads.items()):
            gpu = "" if device_load.peak_gpu_percent is None else f", GPU {device_load.peak_gpu_percent}%"
            power = ""
            if device_load.peak_power_mw is not None and device_load.mean_power_mw is not None:
                power = (
                    f", power {device_load.peak_power_mw / 1e3:.1f} W (mean {device_load.mean_power_mw / 1e3:.1f} W)"
                )
            lines.append(
                f"{context} tokens: peak RAM of the device {device_load.peak_ram_bytes / 2**20:.0f} MiB{gpu}{power}"
            )
        return lines


@dataclass(frozen=True)
class BenchReport:
    """All rows of one run; loading is not part of any time in them. `device`: None where nothing tells."""

    bundle: str
    threads: int | None
    rows: tuple[Row, ...]
    device: DeviceReport | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "rows": [asdict(row) for row in self.rows]}

    def to_text(self) -> str:
        """A readable table."""
        threads = f", {self.threads} threads" if self.threads else ""
        backend = self.rows[0].backend if self.rows else ""
        table = Table(title=f"{escape(self.bundle)} on {backend}{threads}", title_justify="left")
        columns = ("context", "TTFT ms", "prefill tok/s", "decode tok/s", "step ms", "peak MiB", "state KiB")
        for title in columns:
            table.add_column(title, justify="right")
        for row in self.rows:
            table.add_row(
                str(row.context),
                f"{row.ttft_ms:.1f}",
                f"{row.prefill_tokens_per_s:.0f}",
                f"{row.decode_tokens_per_s:.1f}",
                f"{row.step_ms:.2f}",
                f"{row.peak_bytes / 2**20:.0f}",
                f"{row.state_bytes / 2**10:.1f}",
            )
        lines = self.device.to_lines() if self.device else []
        return plain_text(table, width=100) + "".join(line + "\n" for line in lines)


def bench(
    bundle: Path | str,
    *,
    contexts: Sequence[int] = CONTEXTS,
    backend: str = "auto",
    threads: int | None = None,
    progress: Callable[[str], None] | None = None,
    plot: Path | str | None = None,
) -> BenchReport:
    """Measure a bundle at every context length (tokens of a random text prompt), shortest first.

    plot: a picture file to draw (needs matplotlib). Raises InputError for a bad bundle, length or plot file name, and
    MissingComponentError for a backend or matplotlib that is not installed.
    """
    bundle, plot = Path(bundle), None if plot is None else Path(plot)
    if plot is not None:
        require("matplotlib", needed_for="linmu bench --plot")
        if Path(plot).suffix not in (".png", ".svg", ".pdf"):
            raise InputError("the plot file", got=plot, expected="a name that ends in .png, .svg or .pdf")
        if not Path(plot).absolute().parent.is_dir():
            raise InputError(f"cannot write {plot}", got="no such folder")  # told before minutes of measuring
        check_file_target(plot)
    if not contexts or min(contexts) < 1:
        raise InputError("context lengths", got=list(contexts), expected="counts of at least 1")
    rows: list[Row] = []
    loads: dict[int, DeviceLoad] = {}
    with load(bundle, backend, threads) as session:  # whatever is wrong with it is told here, and once
        backend = session.runner.backend
    for length in sorted(set(contexts)):
        if progress is not None:
            progress(f"{length} tokens")
        with LoadMonitor() as monitor:
            rows.append(_child(Path(bundle), length, backend, threads))
        if (device_load := monitor.load) is not None:
            loads[length] = device_load
    report = BenchReport(str(bundle), threads, tuple(rows), _device(loads))
    if plot is not None:
        draw(report, Path(plot))
    return report


def measure(session: Session, context: int) -> Row:
    """Measure one length in this process (peak memory is this process's so far)."""
    random = _random_tokens(session, context + WARM_UP_STEPS + STEPS)
    session.prefill(ModelInputs(random[:WARM_UP_TOKENS], ""))
    session.step(int(random[0]))
    session.reset()
    start = time.perf_counter()
    logits = session.prefill(ModelInputs(random[:context], ""))
    int(logits.argmax())
    ttft = time.perf_counter() - start
    times = []
    for token in random[context:]:
        start = time.perf_counter()
        logits = session.step(int(token))
        int(logits.argmax())
        times.append(time.perf_counter() - start)
    if not np.isfinite(logits).all():
        raise InputError("the graph gave logits that are not finite", fix="run `linmu verify` on the bundle")
    step = statistics.median(times[WARM_UP_STEPS:])
    return Row(
        context,
        ttft * 1e3,
        context / ttft,
        1 / step,
        step * 1e3,
        peak_bytes(),
        session.state.nbytes,
        session.runner.backend,
    )


def _device(loads: dict[int, DeviceLoad]) -> DeviceReport | None:
    """The device's own words, or None where it has none of tegrastats and nvpmodel."""
    mode = power_mode()
    if mode is None and not loads:
        return None
    return DeviceReport(board(), mode.name if mode else None, loads)


def _random_tokens(session: Session, count: int) -> np.ndarray:
    """Seeded ids [count] int64 without vision tokens."""
    ids = seeded_ids("bench", session.bundle.manifest.model.vocab_size, count)
    return np.where(np.isin(ids, session.processor.media_token_ids), 0, ids)


def _child(bundle: Path, context: int, backend: str, threads: int | None) -> Row:
    request = json.dumps([str(bundle), context, backend, threads])
    done = subprocess.run(
        [sys.executable, "-m", "linmu.tools.bench"], input=request, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        killed = done.returncode < 0
        fix = "choose a shorter context: the process was killed, perhaps for its memory" if killed else None
        raise InputError(f"measuring {context} tokens failed", got=lines[-1][:300], fix=fix)
    return Row(**json.loads(done.stdout.strip().splitlines()[-1]))


def draw(report: BenchReport, path: Path) -> None:
    """Three plots side by side: TTFT, decode rate and peak memory against context length."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = (
        ("time to first token (ms)", [row.ttft_ms for row in report.rows]),
        ("decode (tokens/s)", [row.decode_tokens_per_s for row in report.rows]),
        ("peak memory (MiB)", [row.peak_bytes / 2**20 for row in report.rows]),
    )
    contexts = [row.context for row in report.rows]
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, values) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        axes.plot(contexts, values, marker="o")
        axes.set(title=title, xlabel="context (tokens)", ylim=(0, 1.15 * max(values)))
        axes.set_xscale("log", base=2)
        axes.set_xticks(contexts, [str(context) for context in contexts])
        axes.grid(alpha=0.3)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:])


def _main() -> int:
    bundle, context, backend, threads = json.load(sys.stdin)
    try:
        with load(bundle, backend, threads, verify_hashes=False) as session:  # the parent has verified them
            print(json.dumps(asdict(measure(session, context))))
    except LinmuError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(_main())
