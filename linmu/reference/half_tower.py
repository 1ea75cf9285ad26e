"""A vision tower with its matrix products in half precision: the same roundings when it runs and when it is captured.

As in linmu.step.half_ops: a product rounds both factors to float16, sums in float32 and rounds the result to float16.
Norms, softmax, activations, biases, the residual stream and the patch convolution of tile towers stay in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from linmu.errors import InputError
from linmu.step.half_ops import half


class HalfProducts(TorchFunctionMode):
    """While this is on, every matrix product of the code inside is a half product; `reordered`: summed otherwise."""

    def __init__(self, reordered: bool = False):
        super().__init__()
        self.reordered = reordered
        self._table: dict[Callable[..., Any], Callable[..., Tensor]] = {
            functional.linear: self._linear,
            functional.scaled_dot_product_attention: self._attention,
            **dict.fromkeys((torch.matmul, torch.bmm, Tensor.matmul, Tensor.__matmul__, Tensor.bmm), self._product),
        }

    def __torch_function__(self, function, types, args=(), kwargs=None):
        """Replace the functions of the table."""
        return self._table.get(function, function)(*args, **(kwargs or {}))

    def _product(self, x: Tensor, y: Tensor) -> Tensor:
        x, y = half(x), half(y)
        if not self.reordered:
            return half(torch.matmul(x, y))
        middle = y.shape[-2] // 2
        back = torch.matmul(x[..., middle:], y[..., middle:, :])
        return half(back + torch.matmul(x[..., :middle], y[..., :middle, :]))

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        y = self._product(x, weight.t())
        return y if bias is None else y + bias

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask=None,
        dropout_p=0.0,
        is_causal=False,
        scale: float | None = None,
        enable_gqa=False,
    ) -> Tensor:
        if is_causal or dropout_p or enable_gqa:
            raise InputError(
                "the vision tower's attention in half precision",
                got="causal, grouped or with dropout",
                expected="full attention",
                fix="--quant none",
            )
        scores = self._product(query * (query.shape[-1] ** -0.5 if scale is None else scale), key.transpose(-2, -1))
        if attn_mask is not None:
            scores = scores + attn_mask
        return self._product(scores.softmax(-1), value)
