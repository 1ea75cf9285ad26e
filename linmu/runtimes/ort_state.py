"""A state for ONNX Runtime: two sets of buffers that a run reads and writes in turn."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort

from linmu.specs import StateSpec


def ort_value(array: np.ndarray) -> ort.OrtValue:
    """An OrtValue over the array's own memory (the caller keeps the array alive)."""
    return ort.OrtValue.ortvalue_from_numpy(array)


def zero_rows(specs: tuple[StateSpec, ...], rows: int) -> dict[str, np.ndarray]:
    """Zero states of `rows` sequences by name; memory that is never written is not taken."""
    return {spec.name: np.zeros([rows, *(int(dim) for dim in spec.shape[1:])], spec.dtype) for spec in specs}


class OrtState:
    """Recurrent state in two sets of buffers: a run reads one, writes the other, and they change places."""

    def __init__(self, specs: tuple[StateSpec, ...]):
        self.specs = specs
        self._sets = [zero_rows(specs, 1) for _ in range(2)]
        self._values = [{name: ort_value(array) for name, array in arrays.items()} for arrays in self._sets]
        self.now = 0
        self.step_bindings: list[ort.IOBinding] = []

    @property
    def nbytes(self) -> int:
        """Bytes of one buffer set."""
        return sum(array.nbytes for array in self._sets[0].values())

    @property
    def current(self) -> dict[str, np.ndarray]:
        """The current tensors themselves; they may be written."""
        return self._sets[self.now]

    def read(self) -> dict[str, np.ndarray]:
        """Copies of the current tensors."""
        return {name: array.copy() for name, array in self.current.items()}

    def write(self, tensors: dict[str, np.ndarray]) -> None:
        """Overwrite the current tensors in place."""
        for name, array in self.current.items():
            array[...] = tensors[name]

    def zero(self) -> None:
        """Back to zeros."""
        for array in self.current.values():
            array.fill(0)

    def mark(self) -> int:
        """The set that holds the state; one run leaves it as it is."""
        return self.now

    def back_to(self, mark: int) -> None:
        """Take that set as the current one again."""
        self.now = mark

    def bind(self, binding: ort.IOBinding, source: int) -> None:
        """Bind buffer set `source` as past and the other one as present."""
        for spec in self.specs:
            binding.bind_ortvalue_input(spec.name, self._values[source][spec.name])
            binding.bind_ortvalue_output(spec.output, self._values[1 - source][spec.name])
