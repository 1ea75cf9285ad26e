"""The workstation's check of graphs for TensorRT: parse and compile all of them with TensorRT-RTX, without a GPU."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from linmu.errors import BundleError, CheckFailed, DeviceError
from linmu.export.jetson.trt_operators import check_operators
from linmu.formats.manifest import Manifest
from linmu.runtimes.tensorrt.builder import capability_name
from linmu.runtimes.tensorrt.compiler import compile_engine
from linmu.system.components import installed

COMPILER = "tensorrt_rtx"
CAPABILITY = "8.6"  # Ampere, as Orin's GPU is: TensorRT-RTX does not compile for Jetson's own SM87
FP8_CAPABILITY = "8.9"  # Ada: the first that multiplies fp8, which Thor does and Orin does not
ABSENT = f"{COMPILER} is not installed: the graphs were not compiled (pip install 'linmu[jetson-export]')"
SKIPPED = "not compiled: --no-compile-check"


def check_engines(folder: Path, manifest: Manifest, compile_graphs: bool = True) -> dict[str, Any]:
    """Hold every graph against TensorRT 10.3's operators and compile it; returns what that took, by graph.

    {"compiler", "capability", "note", "graphs": {name: {"seconds", "engine_bytes", "peak_bytes", "layers"}}}; without
    TensorRT-RTX, or when not told to compile, `note` says so and there are no graphs.
    Raises CheckFailed with the node and the module of the model for what is not parsed or compiled.
    """
    for spec in manifest.graphs.values():
        check_operators(folder / spec.file)
    if not compile_graphs or not installed(COMPILER):
        return {"compiler": None, "capability": None, "note": ABSENT if compile_graphs else SKIPPED, "graphs": {}}
    graphs: dict[str, Any] = {}
    version, capability = "", capability_of(manifest)
    for name, spec in manifest.graphs.items():
        if name == "token_embedding":  # a runner reads rows of the mapped table instead
            continue
        engine = compile_graph(folder / spec.file, manifest.profiles.get(name, {}), capability)
        version = engine.pop("version")
        graphs[name] = engine
    compiled_for = capability_name(capability)
    return {"compiler": f"{COMPILER} {version}", "capability": compiled_for, "note": "", "graphs": graphs}


def capability_of(manifest: Manifest) -> str:
    """The GPU generation to compile a bundle for: the first that has its kinds of products."""
    return FP8_CAPABILITY if manifest.precision.static_fp8 else CAPABILITY


def compile_graph(path: Path, profile: dict[str, Any], capability: str = CAPABILITY) -> dict[str, Any]:
    """Compile one ONNX file; {"version", "seconds", "engine_bytes", "peak_bytes", "layers"}.

    Raises CheckFailed for what the parser or builder refuses, and when the compiler dies.
    """
    shapes = {name: [item[side] for side in ("min", "opt", "max")] for name, item in profile.items()}
    try:
        return asdict(compile_engine(path, shapes, flavour=COMPILER, capability=capability))
    except (BundleError, DeviceError) as error:
        fix = "report this model; --no-compile-check skips this check"
        raise CheckFailed(error.what, got=error.got, fix=fix) from error
