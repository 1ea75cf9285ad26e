"""What can be installed and what needs it: one literal table of components."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import util

from linmu.errors import MissingComponentError

# The base install, ONNX Runtime's kernels, and every extra that people install for a purpose.
TARGETS = (
    *("base", "onnx", "convert", "export", "quantize", "jetson", "jetson-export", "mobile", "video", "bench", "eval"),
    *("serve", "demo"),
)
# A target that takes either of two components: it is ready with one of them and everything else it needs.
EITHER = {"jetson": ("tensorrt", "tensorrt-rtx-cu12")}


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
    Component("torch", "torch", ("convert", "export", "quantize", "mobile"), extra="convert"),
    Component("transformers", "transformers", ("convert", "export", "quantize", "mobile"), extra="convert"),
    Component("peft", "peft", ("convert",), extra="convert"),
    Component("accelerate", "accelerate", ("convert",), extra="convert"),
    Component("gguf", "gguf", ("convert",), extra="convert"),
    Component("onnx", "onnx", ("export", "quantize", "mobile"), extra="export"),
    Component("onnxscript", "onnxscript", ("export", "quantize", "mobile"), extra="export"),
    Component("modelopt", "nvidia-modelopt", ("quantize",), extra="quantize"),
    Component("ml_dtypes", "ml_dtypes", ("quantize",), extra="quantize"),
    Component("tensorrt", "tensorrt", ("jetson",), fix="on the device: apt install tensorrt python3-libnvinfer"),
    Component("tensorrt_rtx", "tensorrt-rtx-cu12", ("jetson", "jetson-export"), extra="jetson-export"),
    Component("cuda.bindings", "cuda-bindings", ("jetson",), extra="jetson"),
    Component("executorch", "executorch", ("mobile",), extra="mobile"),
    Component("av", "av", ("video", "demo"), extra="video"),
    Component("matplotlib", "matplotlib", ("bench", "demo"), extra="bench"),
    Component("psutil", "psutil", ("bench",), extra="bench"),
    Component("pyarrow", "pyarrow", ("eval",), extra="eval"),
    Component("fastapi", "fastapi", ("serve",), extra="serve"),
    Component("uvicorn", "uvicorn", ("serve",), extra="serve"),
    Component("llguidance", "llguidance", ("serve",), extra="serve"),
    Component("sse_starlette", "sse-starlette", ("serve",), extra="serve"),
    Component("prometheus_client", "prometheus-client", ("serve",), extra="serve"),
    Component("sklearn", "scikit-learn", ("demo",), extra="demo"),
)


def require(module: str, *, needed_for: str, extra: str | None = None) -> None:
    """Raise MissingComponentError naming the extra unless `module` is installed; `extra` overrides the table's."""
    if installed(module):
        return
    component = next((item for item in COMPONENTS if item.module == module), None)
    if component is None:
        raise MissingComponentError(module, needed_for=needed_for, extra=extra, fix=None if extra else "install it")
    fix = None if extra else component.install
    raise MissingComponentError(component.distribution, needed_for=needed_for, extra=extra, fix=fix)


def installed(module: str) -> bool:
    """Whether a module is found; it is not imported (packages above it are)."""
    try:
        return util.find_spec(module) is not None
    except (ImportError, ValueError):  # blocked, or half-imported
        return False
