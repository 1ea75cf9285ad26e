"""A bundle whose products round their inputs by block, run without that: every integer and scale to float32 accuracy.

ONNX Runtime's MatMulNBits takes float inputs at another accuracy level, which is one number of each node. It is changed
in the bytes of the graph, so that a device needs nothing but ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import onnxruntime as ort

from linmu.errors import BundleError
from linmu.runtimes.backends import BACKENDS, named
from linmu.runtimes.base import Runner
from linmu.runtimes.ort_runner import OrtRunner
from linmu.verification.golden import Golden

if TYPE_CHECKING:
    from linmu.formats.bundle import Bundle

FOLDER_OPTION = "session.model_external_initializers_file_folder_path"  # where a model from memory has its weights
# An attribute in a serialized graph: its name, then field 3 (an integer): INT8_INPUTS of quantized_ops
NAME = b"accuracy_level"
ROUNDED, FLOAT = NAME + b"\x18\x04", NAME + b"\x18\x01"


class FloatInputsRunner(OrtRunner):
    """An OrtRunner whose products with few-bit matrices do not round their inputs."""

    def _source(self, path: Path, options: ort.SessionOptions) -> str | bytes:
        if path.stem not in ("prefill", "step"):
            return super()._source(path, options)
        options.add_session_config_entry(FOLDER_OPTION, str(path.parent.resolve()))
        content = path.read_bytes()
        if content.count(ROUNDED) != content.count(NAME):
            raise BundleError(f"{path}: products that round their inputs", got="other ones", fix="export it again")
        return content.replace(ROUNDED, FLOAT)


def graphs_with_float_inputs(bundle: Bundle, runner: OrtRunner) -> FloatInputsRunner:
    """The graphs of a runner, opened once more (linmu.runtimes.backends: float_inputs)."""
    return FloatInputsRunner(bundle, runner.threads)


@contextmanager
def golden_runner(bundle: Bundle, golden: Golden, runner: Runner) -> Iterator[Runner]:
    """`runner`, or the same backend with the inputs that the golden graph vectors were made with.

    Raises BundleError for a backend that cannot run products without rounding their inputs.
    """
    if not golden.float_inputs:
        yield runner
        return
    opener = named(BACKENDS[runner.backend].float_inputs)
    if opener is None:
        raise BundleError(
            f"golden vectors on backend {runner.backend}",
            got="vectors of inputs that are not rounded",
            expected="a backend that can leave that out",
            fix="--backend onnxruntime",
        )
    with opener(bundle, runner) as opened:
        yield opened
