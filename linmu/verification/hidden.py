"""Hidden states of every position of a prompt: what the last token's logits and the states show next to nothing of.

Graphs give the last token's logits. The value in front of that choice, the normed output of the last layer, has a name
in every prefill graph (HIDDEN), and verification runs a copy of the graph that has it as a further output. The copy is
made in memory, in the bytes of the file, so that a device needs nothing but ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort

from linmu.formats.bundle import Bundle
from linmu.formats.manifest import Manifest
from linmu.processing import ModelInputs
from linmu.runtimes.backends import BACKENDS, named
from linmu.runtimes.base import PromptPiece, Runner
from linmu.runtimes.ort_runner import EXPOSED, OrtRunner
from linmu.runtimes.prompt import place_prompt, prompt_pieces
from linmu.verification.float_inputs import FOLDER_OPTION, FloatInputsRunner

HIDDEN = EXPOSED + "hidden_states"
WHOLE = 1 << 60  # tokens of a piece: never cut
FLOAT_TYPE = b"\x08\x01"  # elem_type: FLOAT


class ShowsHidden(Runner, Protocol):
    """A Runner that keeps the hidden states [1, S, D] of its last prefill call."""

    @property
    def hidden(self) -> np.ndarray:
        """See the class."""


class HiddenRunner(OrtRunner):
    """An OrtRunner whose prefill calls leave the hidden states of all their tokens in `hidden`."""

    def __init__(self, bundle: Bundle, threads: int | None = None):
        self.hidden = np.zeros((1, 0, 0), np.float32)
        super().__init__(bundle, threads)

    def _source(self, path: Path, options: ort.SessionOptions) -> str | bytes:
        source = super()._source(path, options)
        if path.stem != "prefill":
            return source
        options.add_session_config_entry(FOLDER_OPTION, str(path.parent.resolve()))
        return with_output(source if isinstance(source, bytes) else path.read_bytes(), HIDDEN)

    def run_bound(self, name: str, binding: ort.IOBinding, options: ort.RunOptions | None = None) -> None:
        """Run graph `name` on bound buffers and keep what prefill shows."""
        if name == "prefill":
            binding.bind_output(HIDDEN)
        super().run_bound(name, binding, options)
        if name == "prefill":
            self.hidden = binding.get_outputs()[-1].numpy()


class FloatHiddenRunner(HiddenRunner, FloatInputsRunner):
    """The same without rounded inputs (linmu.verification.float_inputs)."""


def with_output(model: bytes, name: str) -> bytes:
    """A serialized ONNX model with one of its float32 values as a further output.

    A message may be written in parts, which are merged when it is read: here a graph (field 7 of a model) with an
    output (12), which is a name (1) and a type (2), of a tensor (1).
    """
    value = _field(1, name.encode()) + _field(2, _field(1, FLOAT_TYPE))
    return model + _field(7, _field(12, value))


def _field(number: int, content: bytes) -> bytes:
    size, length = len(content), bytearray()
    while size >= 128:
        length.append(size % 128 | 128)
        size //= 128
    return bytes([number << 3 | 2, *length, size]) + content


@contextmanager
def hidden_runner(bundle: Bundle, runner: Runner, *, float_inputs: bool = False) -> Iterator[Any]:
    """A runner on the same backend that shows hidden states, or None where the backend or the bundle shows none.

    ONNX Runtime and torch do. A compiled engine or program has the outputs that it was compiled with; bundles exported
    before values had this name show none either.
    """
    shower = named(BACKENDS[runner.backend].hidden)
    if shower is None:
        yield None
        return
    with shower(bundle, runner, float_inputs) as shown:
        yield shown


@contextmanager
def shown_by_itself(bundle: Bundle, runner: ShowsHidden, float_inputs: bool) -> Iterator[ShowsHidden]:
    """A runner that keeps hidden states anyway, as it is."""
    yield runner


@contextmanager
def shown_by_graphs(bundle: Bundle, runner: OrtRunner, float_inputs: bool) -> Iterator[HiddenRunner | None]:
    """A copy of the prefill graph with a further output; None where no value of the graph has the name."""
    if HIDDEN.encode() not in (bundle.folder / bundle.manifest.graphs["prefill"].file).read_bytes():
        yield None
        return
    for name in runner.open_graphs - {"vision"}:
        runner.drop(name)  # opened again when needed: two sessions would hold the weights twice
    with (FloatHiddenRunner if float_inputs else HiddenRunner)(bundle, runner.threads) as shown:
        yield shown


def whole_prompt(runner: Runner, inputs: ModelInputs, manifest: Manifest) -> list[PromptPiece]:
    """A prompt in one piece, with embeddings and vision features of `runner`."""
    return list(prompt_pieces(inputs, runner, manifest, place_prompt(inputs, manifest), 0, WHOLE))


def hidden_states(runner: ShowsHidden, pieces: Sequence[PromptPiece]) -> np.ndarray:
    """Hidden states [S, D] of a prompt's pieces, read one after the other from an empty state."""
    state, rows = runner.new_state(), list[np.ndarray]()
    for piece in pieces:
        runner.prefill(piece, state)
        rows.append(runner.hidden[0])
    return np.concatenate(rows)
