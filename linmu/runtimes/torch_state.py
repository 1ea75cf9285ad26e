"""Recurrent states of the runners whose tensors are torch's; torch is imported when a state is made."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from linmu.specs import StateSpec

if TYPE_CHECKING:
    import torch


class TorchState:
    """Recurrent state as torch tensors by `past.*` name."""

    def __init__(self, specs: tuple[StateSpec, ...]):
        self.specs = specs
        self.zero()

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(x.numel() * x.element_size() for x in self.tensors.values())

    def read(self) -> dict[str, np.ndarray]:
        """Copies of all tensors."""
        return {name: x.numpy().copy() for name, x in self.tensors.items()}

    def write(self, tensors: dict[str, np.ndarray]) -> None:
        """Replace all tensors."""
        import torch

        self.tensors = {spec.name: torch.from_numpy(tensors[spec.name].copy()) for spec in self.specs}

    def zero(self) -> None:
        """Back to zeros."""
        import torch

        shapes = {s: [1 if isinstance(dim, str) else dim for dim in s.shape] for s in self.specs}
        self.tensors = {s.name: torch.zeros(shape, dtype=getattr(torch, s.dtype)) for s, shape in shapes.items()}

    def mark(self) -> dict[str, torch.Tensor]:
        """The tensors themselves: a run makes new ones."""
        return self.tensors

    def back_to(self, mark: dict[str, torch.Tensor]) -> None:
        """Take those tensors as the state again."""
        self.tensors = mark

    def advance(self, present: dict[str, torch.Tensor]) -> None:
        """Take the outputs of a run as the new state."""
        self.tensors = {spec.name: present[spec.output] for spec in self.specs}
