"""torch: the step form run eagerly on the bundle's own weights (the vision graph still runs in ONNX Runtime)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

from linmu.errors import BundleError
from linmu.formats.bundle import Bundle
from linmu.formats.decoder_file import open_decoder, plain_parts
from linmu.formats.matrix_format import part
from linmu.runtimes.base import PromptPiece, VisionFeatures
from linmu.runtimes.ort_runner import OrtRunner
from linmu.runtimes.torch_state import TorchState
from linmu.step import decoder
from linmu.step.form import DecoderForm
from linmu.step.half_ops import HalfOps, half_matrices
from linmu.step.torch_ops import TorchOps

if TYPE_CHECKING:
    from typing import Self  # Python 3.11


class TorchRunner:
    """The eager step form; see linmu.runtimes.base.Runner."""

    backend = "torch"
    max_piece_tokens: int | None = None

    def __init__(self, bundle: Bundle, threads: int | None = None):
        if threads is not None:
            torch.set_num_threads(threads)
        self.bundle, self.state_specs = bundle, bundle.manifest.state
        self.form = bundle_form(bundle)
        halves = half_matrices(self.form, bundle.manifest.precision)
        self.ops = HalfOps(self.form, halves) if halves else TorchOps(self.form)
        self._vision: OrtRunner | None = None
        self._threads = threads

    def __enter__(self) -> Self:
        """The runner itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Drop the weights."""
        self.ops.weights.clear()
        if self._vision is not None:
            self._vision.close()

    @property
    def hidden(self) -> np.ndarray:
        """Hidden states [1, S, D] of the last prefill call's tokens."""
        return self.ops.hidden.numpy()

    def new_state(self) -> TorchState:
        """A zero state for one sequence."""
        return TorchState(self.state_specs)

    def embed(self, input_ids: np.ndarray) -> np.ndarray:
        """Token embeddings: [S] int64 -> [S, D] float32."""
        return self.ops.embed(torch.from_numpy(np.asarray(input_ids, np.int64)), "token_embedding").numpy()

    def encode(self, call: dict[str, np.ndarray]) -> VisionFeatures:
        """The vision graph, in ONNX Runtime: a bundle holds the tower only as a graph."""
        if self._vision is None:
            self._vision = OrtRunner(self.bundle, self._threads)
        return self._vision.encode(call)

    @torch.no_grad()
    def prefill(self, piece: PromptPiece, state: TorchState) -> np.ndarray:
        """Run a piece of a prompt, updating the state in place -> logits [V] of its last token."""
        layout = {name.removeprefix("layout."): torch.from_numpy(x) for name, x in piece.layout.items()} or None
        deepstack = None if piece.deepstack is None else torch.from_numpy(piece.deepstack)
        logits, present = decoder.prefill(
            self.ops,
            self.form,
            torch.from_numpy(piece.inputs_embeds),
            self._positions(piece.position_ids),
            state.tensors,
            layout,
            deepstack,
            torch.tensor([piece.past_length]),
        )
        state.advance(present)
        return logits[0, 0].numpy()

    @torch.no_grad()
    def step(self, token: int, position: int, past_length: int, state: TorchState) -> np.ndarray:
        """One decode step -> logits [V]."""
        positions = self._positions(np.full((self.form.rope_axes, 1), position, np.int64))
        logits, present = decoder.step(
            self.ops, self.form, torch.tensor([[token]]), positions, state.tensors, torch.tensor([past_length])
        )
        state.advance(present)
        return logits[0, 0].numpy()

    def _positions(self, position_ids: np.ndarray) -> torch.Tensor:
        positions = torch.from_numpy(np.ascontiguousarray(position_ids))
        return positions[:, None] if self.form.rope_axes == 3 else positions


def bundle_form(bundle: Bundle) -> DecoderForm:
    """The step form on a bundle's own weights: float32, but for the integers of quantized matrices."""
    file, views = open_decoder(bundle.folder, bundle.manifest)
    integers = {part(name, "q") for name in file.packing}
    weights = {
        name: torch.from_numpy(np.array(view) if name in integers else np.array(view, np.float32))
        for name, view in plain_parts(views, file).items()
    }
    try:
        return DecoderForm.from_json(file.form, {name: _held(x) for name, x in weights.items()})
    except TypeError as error:
        raise BundleError("decoder.json: form", got=error, fix="export the bundle again") from error


def _held(x: torch.Tensor) -> Callable[[], torch.Tensor]:
    return lambda: x


@contextmanager
def float_inputs(bundle: Bundle, runner: TorchRunner) -> Iterator[TorchRunner]:
    """The runner, rounding no inputs of products until it is left (linmu.runtimes.backends: float_inputs)."""
    inputs = runner.ops.inputs
    saved = dict(inputs)
    inputs.clear()
    try:
        yield runner
    finally:
        inputs.update(saved)


def open_torch(bundle: Bundle, threads: int | None) -> TorchRunner:
    """Open the torch runner."""
    return TorchRunner(bundle, threads)
