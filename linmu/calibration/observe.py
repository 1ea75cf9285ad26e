"""The student run as a device runs it, every matrix product and state watched on the way (torch)."""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn
from transformers import PreTrainedModel

from linmu.calibration.statistics import InputStatistics
from linmu.reference.eager import StudentRunner
from linmu.step.form import DecoderForm
from linmu.step.torch_ops import TorchOps

VISION = "vision."


class Book:
    """What was seen since `close` last emptied it: rows by matrix, and the ranges of the states."""

    def __init__(self) -> None:
        self.rows: dict[str, list[np.ndarray]] = {}
        self.states: dict[str, np.ndarray] = {}

    def see(self, matrix: str, x: Tensor) -> None:
        """The input [..., C] of a matrix product."""
        self.rows.setdefault(matrix, []).append(x.detach().reshape(-1, x.shape[-1]).numpy().copy())

    def see_state(self, name: str, value: Tensor, lowest: bool = False) -> None:
        """The largest |value| (or the lowest value) over all but the last axis, or by head of [B, M, d, d]."""
        x = value.detach()
        extreme = x.reshape(-1, x.shape[-1]).amin(0) if lowest else x.abs().amax((0, 2, 3) if x.ndim == 4 else (0, 1))
        old = self.states.get(name)
        new = extreme.numpy().astype(np.float32)
        self.states[name] = new if old is None else (np.minimum if lowest else np.maximum)(old, new)

    def close(self, inputs: dict[str, InputStatistics], states: dict[str, np.ndarray], kept_rows: int) -> str | None:
        """Add everything to statistics; returns the name of something that was not finite (nothing is added then)."""
        stacked = {name: np.concatenate(parts) for name, parts in self.rows.items()}
        for name, x in (*stacked.items(), *self.states.items()):
            if not np.isfinite(x).all():
                return name
        for name, x in stacked.items():
            inputs.setdefault(name, InputStatistics(x.shape[1], kept_rows)).add(x)
        for name, value in self.states.items():
            old = states.get(name, value)
            states[name] = np.minimum(old, value) if name.endswith("log_decay") else np.maximum(old, value)
        self.rows.clear()
        self.states.clear()
        return None


class ObservedOps(TorchOps):
    """TorchOps that writes every matrix product's input, and the forward states, into a book."""

    def __init__(self, form: DecoderForm, book: Book):
        super().__init__(form)
        self.book, self.scope = book, ""

    def enter(self, scope: str) -> None:
        self.scope = scope

    def multiply(self, x: Tensor, weight: str) -> Tensor:
        self.book.see(weight, x)
        return super().multiply(x, weight)

    def head(self, x: Tensor, weight: str) -> Tensor:
        self.book.see("head", x)
        return super().head(x, weight)

    def causal_conv(self, x: Tensor, weight: str, past: Tensor | None) -> tuple[Tensor, Tensor]:
        if past is not None:
            self.book.see_state(f"{self.scope}conv", x)
        return super().causal_conv(x, weight, past)

    def linear_attention(self, q, k, v, g, past, restart, form: DecoderForm) -> tuple[Tensor, Tensor]:
        y, state = super().linear_attention(q, k, v, g, past, restart, form)
        if past is not None:
            self.book.see_state(f"{self.scope}recurrent", state)
            self.book.see_state(f"{self.scope}log_decay", g, lowest=True)
        return y, state


class ObservedRunner(StudentRunner):
    """A StudentRunner whose matrix products, vision tower included, are written into `book`."""

    def __init__(self, student: PreTrainedModel, book: Book, form: DecoderForm | None = None):
        self.book = book
        super().__init__(student, form=form)
        self._hooks = []
        for name, module in vision_linears(self.tower).items():

            def watch(_, inputs, name=name):
                book.see(VISION + name, inputs[0])

            self._hooks.append(module.register_forward_pre_hook(watch))

    def _operations(self) -> TorchOps:
        return ObservedOps(self.form, self.book)

    def close(self) -> None:
        """Drop the weights and the hooks."""
        for hook in self._hooks:
            hook.remove()
        super().close()


def vision_linears(tower: nn.Module | None) -> dict[str, nn.Linear]:
    """The linear layers of a vision tower by module name (empty without a tower)."""
    modules = () if tower is None else tower.named_modules()
    return {name: module for name, module in modules if isinstance(module, nn.Linear)}
