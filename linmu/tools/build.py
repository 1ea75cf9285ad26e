"""`linmu build`: compile a bundle's graphs into engines for the GPU that is here, one at a time, kept and keyed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from linmu.errors import InputError
from linmu.files.atomic import atomic_file
from linmu.formats.bundle import ENGINES, Bundle, open_bundle
from linmu.formats.graph_check import check_graph_files
from linmu.runtimes.shape_ranges import Ranges, bundle_ranges, input_shapes
from linmu.runtimes.tensorrt import cuda, engine_files
from linmu.runtimes.tensorrt.builder import capability_name
from linmu.runtimes.tensorrt.compiler import compile_engine
from linmu.runtimes.tensorrt.engine_files import Engine, EngineParts
from linmu.runtimes.tensorrt.forecast import MemoryForecast, forecast_build, require_memory
from linmu.runtimes.tensorrt.toolkit import Toolkit, load_toolkit
from linmu.system.console import plain_text
from linmu.system.device_facts import host_memory
from linmu.system.units import size

Say = Callable[[str], None]
Progress = Callable[..., None]  # progress(text, done, total)
NEEDED_FOR = "linmu build"


@dataclass(frozen=True)
class EngineRow:
    """One graph: its engine's file, whether it was built now and why, bytes, seconds, forecast and real peak."""

    graph: str
    file: str
    built: bool
    reason: str
    engine_bytes: int
    seconds: float
    forecast_bytes: int
    peak_bytes: int


@dataclass(frozen=True)
class BuildReport:
    """What a build made, for which TensorRT and GPU, and which old files it removed."""

    bundle: str
    tensorrt: str
    gpu: str
    rows: tuple[EngineRow, ...]
    removed: tuple[str, ...]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def to_text(self) -> str:
        """A readable table."""
        title = f"{escape(self.bundle)}: {self.tensorrt}, {self.gpu}"
        table = Table("graph", "engine", "", "size", "seconds", "forecast", "peak", title=title, title_justify="left")
        for row in self.rows:
            what = f"built: {row.reason}" if row.built else "up to date"
            costs = (f"{row.seconds:.1f}", size(row.forecast_bytes), size(row.peak_bytes)) if row.built else ("",) * 3
            table.add_row(row.graph, row.file, what, size(row.engine_bytes), *costs)
        removed = "".join(f"removed {name}\n" for name in self.removed)
        return plain_text(table, width=140) + removed


@dataclass(frozen=True)
class _Machine:
    """What engines are built for and with."""

    toolkit: Toolkit
    gpu: str
    capability: str
    foreign: bool  # compiled for a GPU that is not here
    level: int | None  # of optimisation

    def parts(self, bundle: Bundle, graph: str, ranges: Ranges) -> EngineParts:
        return engine_files.engine_parts(
            bundle,
            graph,
            ranges,
            flavour=self.toolkit.flavour,
            version=self.toolkit.version,
            gpu=self.gpu,
            capability=self.capability,
            level=self.level,
        )


def build(
    bundle: Path | str,
    *,
    max_tokens: int | None = None,
    flavour: str = "auto",
    capability: str | None = None,
    optimization_level: int | None = None,
    force: bool = False,
    ignore_memory: bool = False,
    say: Say | None = None,
    progress: Progress | None = None,
) -> BuildReport:
    """Compile every graph that has no engine for this GPU, TensorRT and content; keep those that have.

    max_tokens: of one prefill call (longer prompts run in pieces; a picture must fit in one). flavour: "auto" or a
    name of FLAVOURS. capability: such as "8.6", to compile without that GPU (tensorrt_rtx only). force: build all
    again. ignore_memory: try even if the forecast does not fit. say and progress report.
    Raises InputError for a bad bundle, argument or too little memory, MissingComponentError without TensorRT,
    cuda-python or a GPU, DeviceError when the compiler fails. What was built before an error stays usable.
    """
    started, say = time.perf_counter(), say or (lambda _: None)
    folder = Path(bundle)
    if capability is not None:
        capability_name(capability)
    if optimization_level is not None and not 0 <= optimization_level <= 5:
        raise InputError("optimization level", got=optimization_level, expected="0 to 5")
    opened = open_bundle(folder)
    if "tensorrt" not in opened.manifest.backends:
        raise InputError(
            f"{folder} is not made for TensorRT",
            got=f"target {opened.manifest.target}",
            fix="linmu export STUDENT --target jetson",
        )
    check_graph_files(folder, opened.manifest)
    ranges = bundle_ranges(opened.manifest, max_tokens)
    machine = _machine(flavour, capability, optimization_level)
    (folder / ENGINES).mkdir(exist_ok=True)
    old = _old_index(folder, force, say)
    removed = engine_files.remove_stale(folder, old.values())  # first: what is stale takes room, too
    rows, engines = [], dict(old)
    for graph, graph_ranges in ranges.items():
        parts = machine.parts(opened, graph, graph_ranges)
        problem = engine_files.engine_problem(folder, old.get(graph), parts)
        if problem is None and not force:
            rows.append(_kept(old[graph]))
            continue
        reason = problem or "asked for"
        row, engines[graph] = _build_one(
            opened, graph, graph_ranges, parts, machine, reason, ignore_memory, say, progress
        )
        rows.append(row)
        engine_files.write_index(folder, engines.values())  # after each: an interrupt loses only what it stops
    engines = {graph: engine for graph, engine in engines.items() if graph in ranges}
    engine_files.write_index(folder, engines.values())
    removed += engine_files.remove_stale(folder, engines.values())
    return BuildReport(
        str(folder),
        f"{machine.toolkit.flavour} {machine.toolkit.version}",
        f"{machine.gpu} ({machine.capability})",
        tuple(rows),
        tuple(removed),
        time.perf_counter() - started,
    )


def _machine(flavour: str, capability: str | None, level: int | None) -> _Machine:
    if capability is None:
        toolkit = load_toolkit(flavour, needed_for=NEEDED_FOR)
        facts = cuda.gpu_facts(NEEDED_FOR)
        return _Machine(toolkit, facts.name, facts.capability_text, False, level)
    toolkit = load_toolkit("tensorrt_rtx" if flavour == "auto" else flavour, needed_for="compiling without a GPU")
    return _Machine(toolkit, "no GPU here", capability, True, level)


def _old_index(folder: Path, force: bool, say: Say) -> dict[str, Engine]:
    """The engines of earlier builds; a damaged index is only an error where it is not replaced."""
    try:
        return engine_files.read_index(folder)
    except InputError as error:
        if not force:
            raise
        say(f"{error}: building everything again")
        return {}


def _kept(engine: Engine) -> EngineRow:
    return EngineRow(engine.graph, engine.file, False, "", engine.nbytes, engine.seconds, 0, engine.peak_bytes)


def _build_one(
    bundle: Bundle,
    graph: str,
    ranges: Ranges,
    parts: EngineParts,
    machine: _Machine,
    reason: str,
    ignore_memory: bool,
    say: Say,
    progress: Progress | None,
) -> tuple[EngineRow, Engine]:
    spec, path = bundle.manifest.graphs[graph], bundle.path(bundle.manifest.graphs[graph].file)
    forecast = forecast_build(engine_files.weight_bytes(bundle, graph), _available_bytes(machine))
    say(_announcement(graph, reason, forecast))
    if not ignore_memory:
        require_memory(graph, forecast)
    name = engine_files.engine_name(graph, parts)
    with atomic_file(bundle.folder / ENGINES / name) as temporary:
        built = compile_engine(
            path,
            input_shapes(spec, ranges),
            flavour=machine.toolkit.flavour,
            engine=temporary,
            timing_cache=bundle.folder / ENGINES / engine_files.TIMING_CACHE,
            workspace_bytes=forecast.workspace_bytes,
            capability=machine.capability if machine.foreign else None,
            optimization_level=machine.level,
            progress=None if progress is None else lambda phase, done, all_: progress(f"{graph}: {phase}", done, all_),
        )
    row = EngineRow(graph, name, True, reason, built.engine_bytes, built.seconds, forecast.peak_bytes, built.peak_bytes)
    return row, Engine(graph, name, built.engine_bytes, parts, built.seconds, built.peak_bytes)


def _available_bytes(machine: _Machine) -> int:
    """What a build may take: memory of the host, and of the GPU where that has its own."""
    available = host_memory().available_bytes
    if machine.foreign:
        return available
    facts = cuda.gpu_facts(NEEDED_FOR)
    # Where host and GPU share memory, CUDA does not count what the system would give back: the host's figure does.
    return available if facts.integrated else min(available, facts.free_bytes)


def _announcement(graph: str, reason: str, forecast: MemoryForecast) -> str:
    return (
        f"{graph}: {reason}; {size(forecast.weight_bytes)} of weights, forecast peak {size(forecast.peak_bytes)} of "
        f"{size(forecast.available_bytes)} available, workspace {size(forecast.workspace_bytes)}"
    )
