"""What is installed, what each target needs and what is missing: one literal table of components."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib import import_module, metadata, util
from typing import Any

from linmu.errors import MissingComponentError

TARGETS = ("base", "convert", "export", "jetson", "mobile", "video", "bench")


@dataclass(frozen=True)
class Component:
    """One package: module to import, distribution to ask for its version, what needs it, and the extra or command."""

    module: str
    distribution: str
    needed_by: tuple[str, ...]
    extra: str | None = None
    fix: str | None = None

    @property
    def install(self) -> str:
        """The command that installs it."""
        package = f"'linmu[{self.extra}]'" if self.extra else "--force-reinstall linmu"
        return self.fix or f"pip install {package}"


COMPONENTS: tuple[Component, ...] = (
    Component("numpy", "numpy", ("base",)),
    Component("safetensors", "safetensors", ("base",)),
    Component("tokenizers", "tokenizers", ("base",)),
    Component("jinja2", "jinja2", ("base",)),
    Component("PIL", "pillow", ("base",)),
    Component("typer", "typer", ("base",)),
    Component("rich", "rich", ("base",)),
    Component("onnxruntime", "onnxruntime", ("base",)),
    Component("torch", "torch", ("convert", "export", "mobile"), extra="convert"),
    Component("transformers", "transformers", ("convert", "export", "mobile"), extra="convert"),
    Component("peft", "peft", ("convert",), extra="convert"),
    Component("accelerate", "accelerate", ("convert",), extra="convert"),
    Component("gguf", "gguf", ("convert",), extra="convert"),
    Component("onnx", "onnx", ("export",), extra="export"),
    Component("onnxscript", "onnxscript", ("export",), extra="export"),
    Component("tensorrt", "tensorrt", ("jetson",), fix="comes with JetPack, on the device"),
    Component("tensorrt_rtx", "tensorrt-rtx-cu12", ("jetson",), extra="jetson"),
    Component("executorch", "executorch", ("mobile",), extra="mobile"),
    Component("av", "av", ("video",), extra="video"),
    Component("matplotlib", "matplotlib", ("bench",), extra="bench"),
    Component("psutil", "psutil", ("bench",), extra="bench"),
)

KERNELS = ("LinearAttention", "CausalConvWithState")


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
    """All findings; `ok` speaks of the base install only."""

    python: str
    machine: str
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether everything the base install needs can be used."""
        return all(finding.ok for finding in self.findings if "base" in finding.needed_by)

    def ready(self) -> dict[str, bool]:
        """For every target or extra, whether all it needs is here (jetson: a TensorRT of either kind)."""
        ready = {}
        for target in TARGETS:
            needed = [finding for finding in self.findings if target in finding.needed_by]
            ready[target] = (any if target == "jetson" else all)(finding.ok for finding in needed)
        return ready

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "ok": self.ok,
            "python": self.python,
            "machine": self.machine,
            "ready": self.ready(),
            "components": [finding.to_json() for finding in self.findings],
        }


def diagnose() -> Diagnosis:
    """Look at every component; base packages are really imported, heavy optional ones only looked up."""
    findings = [_examine(component) for component in COMPONENTS]
    findings.append(_kernels())
    return Diagnosis(platform.python_version(), f"{platform.system()} {platform.machine()}", tuple(findings))


def require(module: str, *, needed_for: str, extra: str | None = None) -> None:
    """Raise MissingComponentError naming the extra unless `module` is installed; `extra` overrides the table's."""
    if _installed(module):
        return
    component = next((item for item in COMPONENTS if item.module == module), None)
    if component is None:
        raise MissingComponentError(module, needed_for=needed_for, extra=extra, fix=None if extra else "install it")
    fix = None if extra else component.install
    raise MissingComponentError(component.distribution, needed_for=needed_for, extra=extra, fix=fix)


def _installed(module: str) -> bool:
    try:
        return util.find_spec(module) is not None
    except (ImportError, ValueError):  # blocked, or half-imported
        return False


def _examine(component: Component) -> Finding:
    version, problem = None, None
    try:
        version = metadata.version(component.distribution)
        if "base" in component.needed_by:
            import_module(component.module)
        elif not _installed(component.module):
            problem = f"version {version} is installed but module {component.module} is not found"
    except metadata.PackageNotFoundError:
        if _installed(component.module):  # packages of the system (JetPack's TensorRT) may have no metadata
            version = "unknown"
    except (ImportError, OSError) as error:
        problem = " ".join(str(error).split())
    return Finding(component.distribution, version, problem, component.needed_by, component.install)


def _kernels() -> Finding:
    """Whether ONNX Runtime has the recurrent operators that target onnx uses (domain com.microsoft)."""
    name, install = f"onnxruntime kernels {' and '.join(KERNELS)}", "pip install 'onnxruntime>=1.31'"
    try:
        state = import_module("onnxruntime.capi.onnxruntime_pybind11_state")
        found = {(kernel.domain, kernel.op_name) for kernel in state.get_all_opkernel_def()}
    except (ImportError, OSError, AttributeError) as error:
        return Finding(name, None, f"cannot be listed: {error}", ("base",), install)
    missing = [kernel for kernel in KERNELS if ("com.microsoft", kernel) not in found]
    problem = f"no {', '.join(missing)}" if missing else None
    return Finding(name, None if missing else "1", problem, ("base",), install)
