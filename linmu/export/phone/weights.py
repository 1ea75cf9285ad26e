"""A step form's weights as an ExecuTorch program takes them: matrices [out, in], vectors by head [H, 1, d].

In the place of frequencies stand `turns`, the table of linmu.step.exact_angles. Of a quantized matrix W: W.q
[out, in] int8, W.scale [out] or [out, in / group], and zero points W.zero, all 0, which XNNPACK's pattern asks for;
W.pre [in] as in the form.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from linmu.formats.matrix_format import part
from linmu.step.exact_angles import turn_tables
from linmu.step.form import DecoderForm, is_matrix

TABLES = ("token_embedding", "head")  # [V, D] in a form already
BY_HEAD = ("norm_f", "norm_b", "skip_f", "skip_b")  # what scales values [H, S, d]


def program_weights(form: DecoderForm) -> dict[str, Tensor]:
    """All weights of a form by name.

    Every method's module refers to these very tensors: their bytes are equal, so the file holds them once.
    """
    weights: dict[str, Tensor] = {}
    for name, thunk in form.weights.items():
        matrix, _, kind = name.rpartition(".")
        value = thunk().detach()
        if name == "rope":
            weights["turns"] = torch.from_numpy(turn_tables(value.numpy()))
        elif matrix in form.quantized:
            weights |= _quantized_part(matrix, kind, value)
        elif name.rpartition(".")[2] in BY_HEAD:
            weights[name] = value.float().reshape(form.heads, 1, -1)
        else:
            weights[name] = (value.T if is_matrix(name) and name not in TABLES else value).float().contiguous()
    size = form.head_dim
    weights["mean.head"] = torch.full((1, size), 1.0 / size)
    weights["mean.hidden"] = torch.full((1, form.hidden), 1.0 / form.hidden)
    # sums with a plain number: Core ML's compiler takes them for a product's bias, and stops
    sums = {"hidden": form.eps, "head": form.mmate.norm_eps, "qk": form.qk_norm_eps}
    weights |= {f"eps.{name}": torch.tensor([float(value)]) for name, value in sums.items()}
    for times in {form.state_heads // form.kv_heads, form.heads // form.state_heads, form.heads // form.kv_heads}:
        weights[f"ones.{times}"] = torch.ones(1, times, 1, 1)  # broadcast over copies of a head
    weights["turn"] = _quarter_turn(size)
    return weights


def _quantized_part(matrix: str, kind: str, value: Tensor) -> dict[str, Tensor]:
    """Integers or scales (and zero points) of a matrix [in, out], by the names that a program has for them."""
    if kind == "pre":
        return {part(matrix, kind): value.float().contiguous()}
    assert kind in ("q", "scale"), "rows have no static scales"
    # a copy: of a view, ExecuTorch may write the storage that it views
    value = (value.T if value.ndim == 2 else value).clone(memory_format=torch.contiguous_format)
    if kind == "q":
        return {part(matrix, kind): value}
    zero = torch.zeros(value.shape, dtype=torch.int32 if value.ndim == 2 else torch.int64)
    return {part(matrix, kind): value, part(matrix, "zero"): zero}


def _quarter_turn(size: int) -> Tensor:
    """The matrix [d, d] of (first, second) -> (-second, first): rotary halves without slicing."""
    half = size // 2
    turn = torch.zeros(size, size)
    turn[:half, half:] = -torch.eye(half)
    turn[half:, :half] = torch.eye(half)
    return turn


class Buffers(Mapping[str, Tensor]):
    """Weights registered as a module's buffers, looked up by their names in the form: what torch.export can trace."""

    def __init__(self, module: nn.Module, weights: Mapping[str, Tensor]):
        self.module = module
        self.names = {name: name.replace(".", "_") for name in weights}
        self.used: set[str] = set()
        for name, value in weights.items():
            module.register_buffer(self.names[name], value)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.names:
            raise KeyError(name)
        self.used.add(name)
        value: Tensor = getattr(self.module, self.names[name])
        return value

    def drop_unused(self) -> None:
        """Forget weights that no run has read: a program would carry them all the same."""
        for name in set(self.names) - self.used:
            delattr(self.module, self.names.pop(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)
