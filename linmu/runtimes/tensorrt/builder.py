"""One ONNX graph -> one serialized engine: parse, profile, compile. Works without a GPU for TensorRT-RTX.

Callers go through compiler.py, which runs this in a process of its own.
Settings (SETTINGS_VERSION in engine_files.py): strongly typed, so that every value has the type that the graph says;
TF32 off, so that float32 products are float32.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from linmu.errors import BundleError, DeviceError, InputError
from linmu.runtimes.tensorrt.toolkit import Toolkit

Shapes = Mapping[str, Sequence[Sequence[int]]]  # of every input with a symbolic dimension: its min, opt, max shapes
Progress = Callable[[str, int, int], None]  # phase, steps done, steps in all
LAYER = re.compile(r"layers?[./](\d+)[./]")


@dataclass(frozen=True)
class BuiltEngine:
    """A serialized engine (a buffer), the timing cache after it (None where there is none), seconds, layers parsed."""

    plan: Any
    timing_cache: bytes | None
    seconds: float
    layers: int


def build_engine(
    toolkit: Toolkit,
    path: Path,
    shapes: Shapes,
    *,
    workspace_bytes: int | None = None,
    timing_cache: bytes = b"",
    capability: str | None = None,
    optimization_level: int | None = None,
    progress: Progress | None = None,
) -> BuiltEngine:
    """Compile one graph for the GPU that is here, or for `capability` such as "8.6" (TensorRT-RTX only).

    Raises BundleError when the graph cannot be parsed (naming the node and its layer), InputError for a capability
    that cannot be named here, DeviceError when compiling fails.
    """
    trt, started = toolkit.trt, time.perf_counter()
    toolkit.errors.clear()
    builder = trt.Builder(toolkit.logger)
    network = builder.create_network(_network_flags(trt))
    _parse(toolkit, network, path)
    config = builder.create_builder_config()
    if workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_bytes)
    config.clear_flag(trt.BuilderFlag.TF32)
    if optimization_level is not None:
        config.builder_optimization_level = optimization_level
    if capability is not None:
        _set_capability(toolkit, config, capability)
    _add_profile(toolkit, builder, config, path, shapes)
    timed = toolkit.flavour == "tensorrt"  # TensorRT-RTX times nothing while it builds
    if timed:
        config.set_timing_cache(config.create_timing_cache(timing_cache), False)
    if progress is not None:
        config.progress_monitor = _monitor(trt, progress)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise DeviceError(f"{path.name}: TensorRT could not compile it", got=toolkit.last_error())
    known = bytes(config.get_timing_cache().serialize()) if timed else None
    return BuiltEngine(plan, known, time.perf_counter() - started, network.num_layers)


def capability_name(text: str) -> str:
    """The name of a compute capability in TensorRT's enumeration: "8.6" -> "SM86"; raises InputError."""
    if not re.fullmatch(r"\d{1,2}\.\d", text):
        raise InputError("compute capability", got=repr(text), expected="major.minor, for example 8.6")
    return "SM" + text.replace(".", "")


def module_scope(node: str) -> str:
    """Where a node stands in the model, read from its name (`layers.3.MatMul_2` -> `layer 3`), or ""."""
    match = LAYER.search(node)
    return f"layer {match.group(1)}" if match else node.rpartition(".")[0].replace(".", " ")


def _network_flags(trt: Any) -> int:
    """Strongly typed; a TensorRT that knows nothing else has no flag for it."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _parse(toolkit: Toolkit, network: Any, path: Path) -> None:
    parser = toolkit.trt.OnnxParser(network, toolkit.logger)
    if parser.parse_from_file(str(path)):
        return
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    if not errors:
        raise BundleError(f"{path.name}: TensorRT cannot parse it", got=toolkit.last_error(), fix="export again")
    first = errors[0]
    # older parsers tell fewer facts of an error
    node, operator = (str(getattr(first, fact, str)()) for fact in ("node_name", "node_operator"))
    where = ", ".join(part for part in (f"node {node!r}" if node else "", operator, module_scope(node)) if part)
    raise BundleError(
        f"{path.name}: TensorRT {toolkit.version} cannot parse {where or 'it'}",
        got=str(first.desc())[:300],
        fix="export with --target jetson, whose operators TensorRT 10.3 knows",
    )


def _set_capability(toolkit: Toolkit, config: Any, text: str) -> None:
    kinds = getattr(toolkit.trt, "ComputeCapability", None)
    kind = getattr(kinds, capability_name(text), None)
    if kind is None:
        known = [name for name in getattr(kinds, "__members__", {}) if name.startswith("SM")]
        raise InputError(
            f"{toolkit.flavour} {toolkit.version} cannot compile for compute capability {text} without that GPU",
            expected=", ".join(known) or "a build on the device itself",
            fix="run `linmu build` on the device",
        )
    config.num_compute_capabilities = 1
    config.set_compute_capability(kind, 0)


def _add_profile(toolkit: Toolkit, builder: Any, config: Any, path: Path, shapes: Shapes) -> None:
    if not shapes:
        return
    profile = builder.create_optimization_profile()
    for name, sizes in shapes.items():
        profile.set_shape(name, *sizes)
    if config.add_optimization_profile(profile) < 0:
        raise DeviceError(f"{path.name}: TensorRT refused the optimisation profile", got=toolkit.last_error())


def _monitor(trt: Any, progress: Progress) -> Any:
    class Monitor(trt.IProgressMonitor):
        """Reports the outermost phase."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.outer: str | None = None
            self.steps = 0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            """Called when a phase begins."""
            if parent_phase is None:
                self.outer, self.steps = phase_name, num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            """Called after each step; a false answer would stop the compiler."""
            if phase_name == self.outer:
                progress(phase_name, step + 1, self.steps)
            return True

        def phase_finish(self, phase_name: str) -> None:
            """Called when a phase ends."""

    return Monitor()
