"""Decode steps of many states in one call of ONNX Runtime: rows of two sets of buffers that change places."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime as ort

from linmu.runtimes.ort_state import OrtState, ort_value, zero_rows

if TYPE_CHECKING:
    from linmu.runtimes.ort_runner import OrtRunner

Buffers = dict[str, np.ndarray]


class OrtBatch:
    """See linmu.runtimes.batch.RunnerBatch; a call takes the first rows of the buffers, which lie side by side.

    Memory of rows that were never used is not touched, and so not there.
    """

    def __init__(self, runner: OrtRunner, capacity: int):
        self._runner, self.capacity = runner, capacity
        self._sets: list[Buffers] = [zero_rows(runner.state_specs, capacity) for _ in range(2)]
        self._inputs: dict[int, Buffers] = {}  # by the number of rows
        self._logits = np.zeros((capacity, 1, runner.bundle.manifest.model.vocab_size), np.float32)
        self._bindings: dict[tuple[int, int], ort.IOBinding] = {}
        self._now = self._rows = 0

    def __len__(self) -> int:
        """Rows in use."""
        return self._rows

    def join(self, state: OrtState) -> int:
        """See RunnerBatch."""
        row = self._rows
        for name, array in state.current.items():
            self._sets[self._now][name][row] = array[0]
        self._rows += 1
        return row

    def leave(self, row: int, state: OrtState | None = None) -> None:
        """See RunnerBatch."""
        last = self._rows - 1
        for name, array in self._sets[self._now].items():
            if state is not None:
                state.current[name][0] = array[row]
            if row != last:
                array[row] = array[last]
        self._rows = last

    def step(self, tokens: Sequence[int], positions: Sequence[int], past_lengths: Sequence[int]) -> np.ndarray:
        """See RunnerBatch."""
        inputs = self._inputs_of(self._rows)
        if "inputs_embeds" in inputs:
            inputs["inputs_embeds"][:, 0] = self._runner.embed(np.asarray(tokens))
        else:
            inputs["input_ids"][:, 0] = tokens
        inputs["position_ids"][..., 0] = positions  # the same on all axes of M-RoPE
        if "past_length" in inputs:
            inputs["past_length"][:] = past_lengths
        key = (self._rows, self._now)
        if key not in self._bindings:
            self._bindings[key] = self._bound(*key)
        self._runner.run_bound(self._runner.decode_graph, self._bindings[key])
        self._now = 1 - self._now
        return self._logits[: self._rows, 0]

    def _inputs_of(self, rows: int) -> Buffers:
        if rows not in self._inputs:
            self._inputs[rows] = self._runner.decode_inputs(rows)
        return self._inputs[rows]

    def _bound(self, rows: int, source: int) -> ort.IOBinding:
        binding = self._runner.session(self._runner.decode_graph).io_binding()
        for name, array in self._inputs_of(rows).items():
            binding.bind_ortvalue_input(name, ort_value(array))
        for spec in self._runner.state_specs:
            binding.bind_ortvalue_input(spec.name, ort_value(self._sets[source][spec.name][:rows]))
            binding.bind_ortvalue_output(spec.output, ort_value(self._sets[1 - source][spec.name][:rows]))
        binding.bind_ortvalue_output("logits", ort_value(self._logits[:rows]))
        return binding
