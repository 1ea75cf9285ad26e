"""Which TensorRT is here: one literal table of modules with the same Python API, the preferred one first."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module
from typing import Any

from linmu.errors import InputError, MissingComponentError
from linmu.system.components import installed

# Module -> where it comes from.
FLAVOURS: dict[str, str] = {
    "tensorrt": "install JetPack's TensorRT on the device: sudo apt install tensorrt python3-libnvinfer "
    "(in a virtual environment made with --system-site-packages)",
    "tensorrt_rtx": "pip install 'linmu[jetson-export]' (a PC with an RTX card, or compiling without a GPU)",
}


@dataclass(frozen=True)
class Toolkit:
    """One TensorRT: its module, which of FLAVOURS it is, its version, its one logger and the logger's lines."""

    trt: Any
    flavour: str
    version: str
    logger: Any
    errors: list[str] = field(default_factory=list)

    def last_error(self) -> str:
        """The first line of the first error since `errors` was cleared: later ones follow from it."""
        return self.errors[0].strip().splitlines()[0][:300] if self.errors else "no message"


def installed_flavours() -> list[str]:
    """Names of FLAVOURS that are installed, best first."""
    return [name for name in FLAVOURS if installed(name)]


def load_toolkit(flavour: str = "auto", *, needed_for: str = "TensorRT engines") -> Toolkit:
    """Import a TensorRT ("auto": the best one here).

    Raises InputError for an unknown name, MissingComponentError when it is not installed or does not load.
    """
    if flavour != "auto" and flavour not in FLAVOURS:
        raise InputError("TensorRT module", got=repr(flavour), expected="auto, " + ", ".join(FLAVOURS))
    here = installed_flavours()
    name = (here[0] if here else next(iter(FLAVOURS))) if flavour == "auto" else flavour
    if name not in here:
        raise MissingComponentError(name, needed_for=needed_for, fix=FLAVOURS[name])
    try:
        return _load(name)
    except (ImportError, OSError) as error:
        raise MissingComponentError(f"{name} ({error})", needed_for=needed_for, fix=FLAVOURS[name]) from error


@lru_cache(maxsize=2)
def _load(name: str) -> Toolkit:
    trt = import_module(name)
    errors: list[str] = []
    return Toolkit(trt, name, str(trt.__version__), _logger(trt, errors), errors)


def _logger(trt: Any, errors: list[str]) -> Any:
    """TensorRT keeps the first logger it is given, so there is one for each module."""
    severe = (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR)

    class Lines(trt.ILogger):
        """Keeps the text of errors."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            """Called by TensorRT, from any thread."""
            if severity in severe:
                errors.append(message)

    return Lines()
