"""What ONNX Runtime raises, as one line that says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import onnxruntime as ort

from linmu.errors import BundleError
from linmu.formats.precision import Precision
from linmu.system.ort_kernels import REQUIREMENT, missing_kernels

# Standard operators, which older releases have; --plain-ops does not quantize.
PLAIN, PLAIN_QUANTIZED = "--target onnx --plain-ops", "--target jetson"


@lru_cache(maxsize=1)
def ort_errors() -> tuple[type[Exception], ...]:
    """Everything that ONNX Runtime raises; its binding also uses ordinary ones."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = [item for item in vars(state).values() if isinstance(item, type) and issubclass(item, Exception)]
    return (*own, RuntimeError, ValueError, TypeError)


@contextmanager
def graph_errors(name: str) -> Iterator[None]:
    """What ONNX Runtime raises while graph `name` runs, as a BundleError."""
    try:
        yield
    except ort_errors() as error:
        raise BundleError(
            f"the {name} graph failed while it ran", got=_first_line(error), fix="linmu verify tells what is wrong"
        ) from error


def load_error(path: Path, precision: Precision, error: Exception) -> BundleError:
    """Why a graph file cannot be opened: an ONNX Runtime without the operators of fused graphs, or the file."""
    missing = _missing() if precision.ops == "fused" else []
    if not missing:
        return BundleError(f"{path} cannot be loaded", got=_first_line(error), fix="export it again")
    target = PLAIN_QUANTIZED if precision.quantized else PLAIN
    return BundleError(
        f"{path} cannot be loaded",
        got=f"ONNX Runtime {ort.__version__} without {' and '.join(missing)}",
        expected=f"{REQUIREMENT}, which needs Python 3.11",
        fix=f"pip install '{REQUIREMENT}', or export standard operators: linmu export STUDENT {target}",
    )


def _missing() -> list[str]:
    try:
        return missing_kernels()
    except (ImportError, OSError, AttributeError):
        return []


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
