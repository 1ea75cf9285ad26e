"""A phone program's decoder methods with the inputs of their rounded products as further outputs (see exposed.py).

A program cannot be opened and written again, so the two methods are lowered once more, from the same integers, with
these outputs besides. That they give the bundle's own bits is checked beside (linmu.proof.same_bits).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path as FilePath
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor, nn

from linmu.export.phone.lowering import lower
from linmu.export.phone.methods import Method, Prefill, Step, decoder_methods
from linmu.export.phone.weights import program_weights
from linmu.formats.bundle import Bundle
from linmu.proof.paths import SESSION, Path, RoundedInputs
from linmu.runtimes.et_runner import EtRunner, open_program
from linmu.step.form import DecoderForm

PROGRAM = "exposed.pte"
METHODS = ("prefill", "step")


class ExposedMethod(nn.Module):
    """A decoder method with the inputs of `matrices` [1, S, in] behind its own outputs."""

    def __init__(self, method: Prefill | Step, matrices: tuple[str, ...]):
        super().__init__()
        self.method, self.matrices = method, matrices

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        outputs = self.method(*values)
        return (*outputs, *(self.method.ops.rounded_inputs[name] for name in self.matrices))


class ExposedEtRunner(EtRunner):
    """An EtRunner whose decoder calls leave the inputs of rounded products in `rounded_inputs`.

    form: the very integers of the bundle; the program is written to `folder`.
    """

    def __init__(self, bundle: Bundle, form: DecoderForm, folder: FilePath):
        super().__init__(bundle)
        self.rounded_inputs: RoundedInputs = {}
        # windows take tokens of an input that is exposed
        self.matrices = tuple(
            name for name, format in form.quantized.items() if format.input and not name.endswith(".swin")
        )
        methods = decoder_methods(form, program_weights(form), PROGRAM)
        exposed = {
            name: Method(ExposedMethod(methods[name].module, self.matrices), methods[name].spec) for name in METHODS
        }
        program, _ = lower(exposed, {name: self._most(name) for name in METHODS})
        path = folder / PROGRAM
        with path.open("wb") as file:
            program.write_to_file(file)
        self._shown: Any = open_program(path)
        self._methods |= {name: self._shown.load_method(name) for name in METHODS}

    def _execute(self, name: str, arguments: list[Any]) -> Sequence[Any]:
        outputs = super()._execute(name, arguments)
        if name not in METHODS:
            return outputs
        own = len(self.bundle.manifest.graphs[name].outputs)
        values = [value.numpy().copy() for value in outputs[own:]]
        self.rounded_inputs = dict(zip(self.matrices, values, strict=True))
        return outputs[:own]


@contextmanager
def exposed_program(bundle: Bundle, runner: EtRunner, form: DecoderForm) -> Iterator[list[Path]]:
    """The one path of a phone's program: it is lowered again from the integers of `form` (linmu.runtimes.backends)."""
    with TemporaryDirectory() as folder, ExposedEtRunner(bundle, form, FilePath(folder)) as shown:
        yield [Path(SESSION, shown, lambda: shown.rounded_inputs, runner)]
