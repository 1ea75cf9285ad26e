"""linmu: ship linear-complexity vision-language models to the edge.

The names below are imported when first used: `import linmu` needs neither torch nor transformers. What a command does,
one of these functions does. Two are not named like their command, `export_bundle` and `distill_student`: `linmu.export`
and `linmu.distill` are packages, and Python binds a package's name here as soon as something in it is imported.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from linmu.version import __version__

if TYPE_CHECKING:  # what type checkers see; `_PUBLIC` says the same at run time
    from linmu.calibration.collect import calibrate
    from linmu.config import MMateConfig
    from linmu.conversion.convert import convert as convert_model
    from linmu.conversion.folder import convert_folder as convert
    from linmu.distill.run import distill as distill_student
    from linmu.export.targets import write_bundle as export_bundle
    from linmu.model.modeling import LinMUForCausalLM, LinMUForConditionalGeneration
    from linmu.runtimes.answer import Generation, Piece
    from linmu.runtimes.sampling import Sampling
    from linmu.runtimes.session import Session, load
    from linmu.runtimes.watcher import WatchAnswer, WatchCounts, Watcher
    from linmu.tools.bench import bench
    from linmu.tools.build import build
    from linmu.tools.evaluate import evaluate
    from linmu.tools.inspect import inspect_folder as inspect
    from linmu.tools.verify import verify

__all__ = [
    "Generation",
    "LinMUForCausalLM",
    "LinMUForConditionalGeneration",
    "MMateConfig",
    "Piece",
    "Sampling",
    "Session",
    "WatchAnswer",
    "WatchCounts",
    "Watcher",
    "__version__",
    "bench",
    "build",
    "calibrate",
    "convert",
    "convert_model",
    "distill_student",
    "evaluate",
    "export_bundle",
    "inspect",
    "load",
    "verify",
]

# Name -> (module, name there, what it needs beyond the base install, the extra that installs that).
_TORCH = ("torch", "transformers")
_PUBLIC: dict[str, tuple[str, str, tuple[str, ...], str]] = {
    "convert": ("linmu.conversion.folder", "convert_folder", _TORCH, "convert"),
    "convert_model": ("linmu.conversion.convert", "convert", _TORCH, "convert"),
    "distill_student": ("linmu.distill.run", "distill", (*_TORCH, "accelerate", "peft"), "convert"),
    "evaluate": ("linmu.tools.evaluate", "evaluate", (), ""),
    "calibrate": ("linmu.calibration.collect", "calibrate", _TORCH, "convert"),
    "export_bundle": ("linmu.export.targets", "write_bundle", (*_TORCH, "onnx", "onnxscript"), "export"),
    "build": ("linmu.tools.build", "build", (), ""),
    "verify": ("linmu.tools.verify", "verify", (), ""),
    "load": ("linmu.runtimes.session", "load", (), ""),
    "bench": ("linmu.tools.bench", "bench", (), ""),
    "inspect": ("linmu.tools.inspect", "inspect_folder", (), ""),
    "Session": ("linmu.runtimes.session", "Session", (), ""),
    "Generation": ("linmu.runtimes.answer", "Generation", (), ""),
    "Piece": ("linmu.runtimes.answer", "Piece", (), ""),
    "Watcher": ("linmu.runtimes.watcher", "Watcher", (), ""),
    "WatchAnswer": ("linmu.runtimes.watcher", "WatchAnswer", (), ""),
    "WatchCounts": ("linmu.runtimes.watcher", "WatchCounts", (), ""),
    "Sampling": ("linmu.runtimes.sampling", "Sampling", (), ""),
    "MMateConfig": ("linmu.config", "MMateConfig", (), ""),
    "LinMUForConditionalGeneration": ("linmu.model.modeling", "LinMUForConditionalGeneration", _TORCH, "convert"),
    "LinMUForCausalLM": ("linmu.model.modeling", "LinMUForCausalLM", _TORCH, "convert"),
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562).

    Raises MissingComponentError, naming the extra, where what it needs is not installed.
    """
    if name not in _PUBLIC:
        raise AttributeError(f"module 'linmu' has no attribute {name!r}")
    module, own_name, packages, extra = _PUBLIC[name]
    if packages:
        from linmu.system.components import require

        for package in packages:
            require(package, needed_for=f"linmu.{name}", extra=extra)
    value = getattr(import_module(module), own_name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return sorted(__all__)
