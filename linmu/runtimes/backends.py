"""Which backends exist: one literal table, name -> module, what it needs, and how it is opened."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

from linmu.bundle import Bundle
from linmu.errors import InputError, MissingComponentError
from linmu.runtimes.base import Runner


@dataclass(frozen=True)
class Backend:
    """One backend: module and function that open it, packages it needs, the extra that installs them."""

    module: str
    opener: str
    packages: tuple[str, ...]
    extra: str | None = None

    @property
    def missing(self) -> list[str]:
        """Packages that are not installed."""
        return [name for name in self.packages if find_spec(name) is None]


BACKENDS: dict[str, Backend] = {  # in order of preference for "auto"
    "onnxruntime": Backend("linmu.runtimes.ort_runner", "open_ort", ("onnxruntime",)),
    "torch": Backend("linmu.runtimes.torch_runner", "open_torch", ("torch",), extra="convert"),
}


def available_backends(bundle: Bundle) -> list[str]:
    """Backends that the bundle names and that are installed here, best first."""
    return [name for name, backend in BACKENDS.items() if name in bundle.manifest.backends and not backend.missing]


def open_runner(bundle: Bundle, backend: str = "auto", threads: int | None = None) -> Runner:
    """Open a bundle in a backend ("auto": the best one here).

    Raises InputError for a backend that the bundle does not name, MissingComponentError when it is not installed.
    """
    named = [name for name in BACKENDS if name in bundle.manifest.backends]
    if backend == "auto":
        here = available_backends(bundle)
        backend = here[0] if here else (named[0] if named else "onnxruntime")
    if backend not in named:
        raise InputError(f"backend {backend!r}", expected="auto or one of " + ", ".join(named))
    entry = BACKENDS[backend]
    if entry.missing:
        raise MissingComponentError(", ".join(entry.missing), needed_for=f"backend {backend}", extra=entry.extra)
    runner: Runner = getattr(import_module(entry.module), entry.opener)(bundle, threads)
    return runner
