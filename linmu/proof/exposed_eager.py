"""The torch backend with the inputs of its rounded matrix products kept: it runs eagerly, so nothing is built anew."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from linmu.formats.bundle import Bundle
from linmu.formats.matrix_format import MatrixFormat
from linmu.proof.paths import SESSION, Path, RoundedInputs
from linmu.reference.torch_runner import TorchRunner
from linmu.step.form import DecoderForm
from linmu.step.torch_formats import round_input, round_named


class Recorder:
    """The rounding of an eager backend that keeps the last call's inputs in `rounded_inputs`."""

    def __init__(self) -> None:
        self.rounded_inputs: RoundedInputs = {}

    def __call__(self, weight: str, x: Tensor, format: MatrixFormat, scale: Tensor) -> Tensor:
        """X rounded by itself."""
        self.rounded_inputs[weight] = x.numpy()
        return round_input(x, format, scale)


@contextmanager
def exposed_operations(bundle: Bundle, runner: TorchRunner, form: DecoderForm) -> Iterator[list[Path]]:
    """The one path of a torch runner, which records until it is left (linmu.runtimes.backends: exposer)."""
    recorder = Recorder()
    runner.ops.rounding = recorder
    try:
        yield [Path(SESSION, runner, lambda: recorder.rounded_inputs)]
    finally:
        runner.ops.rounding = round_named
