"""Which backends exist: one literal table, name -> how it is opened, what it needs, and what it shows when verified."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from linmu.errors import InputError, MissingComponentError
from linmu.formats.bundle import Bundle
from linmu.runtimes.base import Runner
from linmu.system.components import installed


@dataclass(frozen=True)
class Backend:
    """One backend: module and function that open it, what it needs, and how to get that.

    packages: importable names; a tuple among them means any one of these. extra: what installs them, or `fix`: what
    else to do. probe: a function of the module, bundle -> why it cannot run here, or None.

    What verification sees of it besides its answers, each "module:function", or None where there is no such thing. They
    are names, as `module` is: what needs torch is imported when it is asked for (`named`).
    graph_files: runner -> a Runner, and context manager, on the very graph files; with `kernels`: (bundle, golden) ->
    checks of this machine's kernels. hidden: (bundle, runner, float_inputs) -> a context manager whose runner keeps
    hidden states (linmu.verification.hidden). float_inputs: (bundle, runner) -> a context manager whose runner rounds
    no inputs of products. exposer: (bundle, runner, form) -> a context manager with the paths whose rounded inputs are
    shown (linmu.proof.paths). stock: (bundle, golden) -> (level, name, check) of the runtime's own programs.
    """

    module: str
    opener: str
    packages: tuple[str | tuple[str, ...], ...]
    extra: str | None = None
    fix: str | None = None
    probe: str | None = None
    graph_files: str | None = None
    kernels: str | None = None
    hidden: str | None = None
    float_inputs: str | None = None
    exposer: str | None = None
    stock: str | None = None

    @property
    def missing(self) -> list[str]:
        """Packages that are not installed."""
        wanted = [(item,) if isinstance(item, str) else item for item in self.packages]
        return [" or ".join(names) for names in wanted if not any(map(installed, names))]


BACKENDS: dict[str, Backend] = {  # in order of preference for "auto"
    "tensorrt": Backend(
        "linmu.runtimes.tensorrt.runner",
        "open_trt",
        (("tensorrt", "tensorrt_rtx"), "cuda.bindings"),
        probe="unusable",
        fix="pip install 'linmu[jetson]' on a Jetson with JetPack's TensorRT (docs/jetson.md)",
    ),
    "onnxruntime": Backend(
        "linmu.runtimes.ort_runner",
        "open_ort",
        ("onnxruntime",),
        graph_files="linmu.verification.graph_files:GraphFiles",
        kernels="linmu.verification.levels:kernel_checks",
        hidden="linmu.verification.hidden:shown_by_graphs",
        float_inputs="linmu.verification.float_inputs:graphs_with_float_inputs",
        exposer="linmu.proof.exposed:exposed_graphs",
    ),
    "executorch": Backend(
        "linmu.runtimes.et_runner",
        "open_et",
        ("executorch", "torch"),
        extra="mobile",
        probe="unusable",
        exposer="linmu.proof.exposed_phone:exposed_program",
        stock="linmu.verification.stock:stock_plan",
    ),
    "torch": Backend(
        "linmu.reference.torch_runner",
        "open_torch",
        ("torch",),
        extra="convert",
        hidden="linmu.verification.hidden:shown_by_itself",
        float_inputs="linmu.reference.torch_runner:float_inputs",
        exposer="linmu.proof.exposed_eager:exposed_operations",
    ),
}


def named(place: str | None) -> Any:
    """What a row's "module:function" names, imported now; None for None."""
    if place is None:
        return None
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


def unusable(bundle: Bundle, name: str) -> str | None:
    """Why a backend that the bundle names cannot run it here, in one line, or None."""
    entry = BACKENDS[name]
    if entry.missing:
        return f"{', '.join(entry.missing)} not installed"
    if entry.probe is None:
        return None
    reason: str | None = getattr(import_module(entry.module), entry.probe)(bundle)
    return reason


def available_backends(bundle: Bundle) -> list[str]:
    """Backends that the bundle names and that can run it here, best first."""
    return [name for name in BACKENDS if name in bundle.manifest.backends and unusable(bundle, name) is None]


def open_runner(
    bundle: Bundle, backend: str = "auto", threads: int | None = None, say: Callable[[str], None] | None = None
) -> Runner:
    """Open a bundle in a backend ("auto": the best one that can run it here).

    say is told in one line when "auto" passes over a better backend, and when there are fewer cores than `threads`
    (default: standard error).
    Raises InputError for a backend that the bundle does not name, MissingComponentError when it is not installed.
    """
    threads = usable_threads(threads, say or _to_stderr)
    named = [name for name in BACKENDS if name in bundle.manifest.backends]
    if backend == "auto":
        backend = _choose(bundle, named, say or _to_stderr)
    if backend not in named:
        raise InputError(f"backend {backend!r}", expected="auto or one of " + ", ".join(named))
    entry = BACKENDS[backend]
    if entry.missing:
        raise MissingComponentError(
            ", ".join(entry.missing), needed_for=f"backend {backend}", extra=entry.extra, fix=entry.fix
        )
    runner: Runner = getattr(import_module(entry.module), entry.opener)(bundle, threads)
    return runner


def usable_threads(threads: int | None, say: Callable[[str], None] = lambda _: None) -> int | None:
    """At most as many threads as there are cores (each takes memory, and more only wait for each other)."""
    if threads is None:
        return None
    if type(threads) is not int or threads < 1:
        raise InputError("threads", got=repr(threads), expected="at least 1")
    cores = os.cpu_count() or 1
    if threads > cores:
        say(f"{threads} threads asked for, {cores} cores are here: running with {cores}")
    return min(threads, cores)


def _choose(bundle: Bundle, named: list[str], say: Callable[[str], None]) -> str:
    """The best backend that can run the bundle here; the first one named when none can."""
    reasons: dict[str, str] = {}
    for name in named:
        reason = unusable(bundle, name)
        if reason is None:
            for passed, why in reasons.items():
                say(f"backend {passed} cannot be used ({why}); running on {name}")
            return name
        reasons[name] = reason
    return named[0] if named else "onnxruntime"


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr)
