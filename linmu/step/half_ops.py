"""The step form with its large matrix products in half precision: the eager reference of graphs that compute so.

A half product rounds both factors to float16, sums in float32 and rounds the result to float16. All else stays in
float32: residual stream, norms, gates, decay, conv, scan, state. `linmu.export.jetson.ops` rounds at the same places.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from linmu.formats.precision import Precision
from linmu.step.form import DecoderForm, is_matrix
from linmu.step.streamed import StreamedWeights
from linmu.step.torch_ops import TorchOps


def half(x: Tensor) -> Tensor:
    """X rounded to float16, in its own dtype."""
    return x.to(torch.float16).to(x.dtype)


class HalfOps(TorchOps):
    """TorchOps with half products for the matrices of `halves` (packed names, form.py); their weights are rounded.

    Window attention is computed with half products where `swin` of its layer is among them.
    """

    def __init__(self, form: DecoderForm, halves: Iterable[str]):
        super().__init__(form)
        self.halves = frozenset(halves)
        self.scope = ""
        if isinstance(self.weights, StreamedWeights):  # rounded once, when they are made
            for name in self.halves:
                self.weights.change(name, half)

    def enter(self, scope: str) -> None:
        self.scope = scope

    def half_product(self, x: Tensor, y: Tensor) -> Tensor:
        """The product x @ y as described at the top of this file."""
        return self.round_product(self.product(half(x), half(y)))

    def head(self, x: Tensor, weight: str) -> Tensor:
        return self._product_for(weight)(self.matrix_input(x, weight), self.weights[weight].T)

    def multiply(self, x: Tensor, weight: str) -> Tensor:
        y = self._product_for(weight)(x, self.weights[weight])
        bias = self.weights.get(weight + "_bias")
        return y if bias is None else y + bias

    def _product_for(self, weight: str):
        if weight not in self.halves:
            return self.product
        rounded = isinstance(self.weights, StreamedWeights) and weight.startswith("layers.")
        return self._rounded_product if rounded else self.half_product

    def _rounded_product(self, x: Tensor, y: Tensor) -> Tensor:
        """`half_product` with a matrix that is rounded already."""
        return self.round_product(self.product(half(x), y))

    def round_product(self, x: Tensor) -> Tensor:
        """A product's float32 sums as float16 numbers, in their own dtype."""
        return half(x)

    def window_attention(self, q, k, v, bias, form: DecoderForm) -> Tensor:
        if self.scope + "swin" not in self.halves:
            return super().window_attention(q, k, v, bias, form)
        rows, length = bias.shape[0], bias.shape[-1]
        repeat = form.heads // form.kv_heads
        k, v = self.repeat_heads(k, repeat, form.head_dim), self.repeat_heads(v, repeat, form.head_dim)
        q, k, v = (x.view(rows, length, form.heads, form.head_dim).transpose(1, 2) for x in (q, k, v))
        scores = self.half_product(q * form.head_dim**-0.5, k.mT) + bias  # [W, H, L, L]
        y = self.half_product(scores.softmax(-1), v)
        return y.transpose(1, 2).reshape(1, rows * length, -1)


def half_matrices(form: DecoderForm, precision: Precision) -> frozenset[str]:
    """The matrices whose products a bundle of this precision computes in half precision.

    Not those whose inputs are quantized: their integers are summed exactly.
    """
    if precision.activations != "fp16":
        return frozenset()
    exact = {name for name, format in form.quantized.items() if format.input}
    names = {name for name in (*form.weights, *form.quantized) if is_matrix(name)}
    return frozenset(names - exact - set(precision.float32_matrices))
