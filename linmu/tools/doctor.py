"""What is installed, what each target needs and what is missing: one literal table of components."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib import import_module, metadata
from typing import Any

from linmu.errors import LinmuError
from linmu.system.components import COMPONENTS, EITHER, TARGETS, Component, installed
from linmu.system.device_facts import board
from linmu.system.ort_kernels import KERNELS, REQUIREMENT, missing_kernels


@dataclass(frozen=True)
class Finding:
    """State of one component: version (None = not installed), the error of a broken import, who needs it."""

    name: str
    version: str | None
    problem: str | None
    needed_by: tuple[str, ...]
    install: str

    @property
    def ok(self) -> bool:
        """Whether it can be used."""
        return self.version is not None and self.problem is None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "name": self.name,
            "version": self.version,
            "ok": self.ok,
            "problem": self.problem,
            "needed_by": list(self.needed_by),
            "install": None if self.ok else self.install,
        }


@dataclass(frozen=True)
class Diagnosis:
    """All findings; `ok` speaks of the base install only; `board` is the name in the device tree, if there is one."""

    python: str
    machine: str
    findings: tuple[Finding, ...]
    board: str | None = None

    @property
    def ok(self) -> bool:
        """Whether everything the base install needs can be used."""
        return all(finding.ok for finding in self.findings if "base" in finding.needed_by)

    def ready(self) -> dict[str, bool]:
        """For every target or extra, whether all it needs is here (jetson: a TensorRT of either kind)."""
        return {target: self._ready(target) for target in TARGETS}

    def _ready(self, target: str) -> bool:
        needed = {finding.name: finding.ok for finding in self.findings if target in finding.needed_by}
        either = [needed.pop(name) for name in EITHER.get(target, ()) if name in needed]
        return all(needed.values()) and (any(either) if target in EITHER else True)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "ok": self.ok,
            "python": self.python,
            "machine": self.machine,
            "board": self.board,
            "ready": self.ready(),
            "components": [finding.to_json() for finding in self.findings],
        }


def diagnose() -> Diagnosis:
    """Look at every component; base packages are really imported, heavy optional ones only looked up."""
    findings = [_examine(component) for component in COMPONENTS]
    findings += [_kernels(), _gpu()]
    machine = f"{platform.system()} {platform.machine()}"
    return Diagnosis(platform.python_version(), machine, tuple(findings), board())


def _examine(component: Component) -> Finding:
    version, problem = None, None
    try:
        version = metadata.version(component.distribution)
        if "base" in component.needed_by:
            import_module(component.module)
        elif not installed(component.module):
            problem = f"version {version} is installed but module {component.module} is not found"
    except metadata.PackageNotFoundError:
        if installed(component.module):  # packages of the system (JetPack's TensorRT) may have no metadata
            version = "unknown"
    except (ImportError, OSError) as error:
        problem = " ".join(str(error).split())
    return Finding(component.distribution, version, problem, component.needed_by, component.install)


def _kernels() -> Finding:
    """Whether ONNX Runtime has the recurrent operators that target onnx uses (domain com.microsoft)."""
    name, install = f"onnxruntime kernels {' and '.join(KERNELS)}", f"pip install '{REQUIREMENT}'"
    try:
        missing = missing_kernels()
    except (ImportError, OSError, AttributeError) as error:
        return Finding(name, None, f"cannot be listed: {error}", ("onnx",), install)
    problem = f"no {', '.join(missing)}" if missing else None
    return Finding(name, None if missing else "1", problem, ("onnx",), install)


def _gpu() -> Finding:
    """The GPU that TensorRT engines run on, by name and compute capability."""
    from linmu.runtimes.tensorrt.cuda import gpu_facts

    install = "run on the Jetson itself; in a container: --runtime nvidia"
    try:
        facts = gpu_facts("linmu doctor")
    except LinmuError as error:
        return Finding("NVIDIA GPU", None, error.what, ("jetson",), install)
    return Finding("NVIDIA GPU", f"{facts.name} ({facts.capability_text})", None, ("jetson",), install)
