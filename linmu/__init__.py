"""linmu: ship linear-complexity vision-language models to the edge.

The names below are imported when first used: `import linmu` needs neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "convert": "linmu.conversion.convert",
    "LinMUForConditionalGeneration": "linmu.model.modeling",
    "LinMUForCausalLM": "linmu.model.modeling",
    "load": "linmu.runtimes.session",
    "Session": "linmu.runtimes.session",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562); raises MissingComponentError where torch is needed and absent."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'linmu' has no attribute {name!r}")
    if _PUBLIC[name].startswith(("linmu.model.", "linmu.conversion.")):
        from linmu.system.components import require

        require("torch", needed_for=f"linmu.{name}")
        require("transformers", needed_for=f"linmu.{name}")
    value = getattr(import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return sorted(__all__)
