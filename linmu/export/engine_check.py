"""The workstation's check of graphs for TensorRT: parse and compile all of them with TensorRT-RTX, without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from linmu.errors import CheckFailed
from linmu.export.trt_operators import check_operators, module_of
from linmu.manifest import Manifest

COMPILER = "tensorrt_rtx"
CAPABILITY = "SM86"  # Ampere, as Orin's GPU is: TensorRT-RTX does not compile for Jetson's own SM87
PROGRAM = "linmu.export.engine_build"
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
    if not compile_graphs or find_spec(COMPILER) is None:
        return {"compiler": None, "capability": None, "note": ABSENT if compile_graphs else SKIPPED, "graphs": {}}
    graphs: dict[str, Any] = {}
    version = ""
    for name, spec in manifest.graphs.items():
        if name == "token_embedding":  # a runner reads rows of the mapped table instead
            continue
        found = compile_graph(folder / spec.file, manifest.profiles.get(name, {}))
        version = found.pop("version")
        graphs[name] = found
    return {"compiler": f"{COMPILER} {version}", "capability": CAPABILITY, "note": "", "graphs": graphs}


def compile_graph(path: Path, profile: dict[str, Any], capability: str = CAPABILITY) -> dict[str, Any]:
    """Compile one ONNX file in a process of its own; what engine_build.py says without `errors`.

    Raises CheckFailed for what the parser or builder refuses, and when the process dies.
    """
    request = json.dumps({"file": str(path), "profile": profile, "capability": capability})
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))}
    done = subprocess.run(
        [sys.executable, "-m", PROGRAM], input=request, capture_output=True, text=True, env=environment
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise CheckFailed(f"TensorRT-RTX died on {path.name}", got=f"exit code {done.returncode}, {said}",
                          fix="--no-compile-check skips this check")  # fmt: skip
    found: dict[str, Any] = json.loads(lines[-1])
    errors = found.pop("errors")
    if errors or found["engine_bytes"] is None:
        raise CheckFailed(f"TensorRT-RTX does not compile {path.name}", got=_told(errors), fix="report this model")
    return found


def _told(errors: list[dict[str, str]]) -> str:
    """The first error with its node and the module that the node came from."""
    if not errors:
        return "no message"
    first = errors[0]
    if not first.get("node"):
        return first["message"]
    return f"{first['operator']} {first['node']!r} of {module_of(first['node'])}: {first['message']}"
