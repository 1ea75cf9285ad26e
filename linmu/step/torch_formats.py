"""Quantized matrices and inputs as torch computes them: the reference that every graph is held to."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from linmu.formats.matrix_format import FP8_LARGEST, INT8_LARGEST, MatrixFormat, part

# (matrix, x, format, scale) -> x as the product sees it; verification puts one of its own in the place of round_named
Rounding = Callable[[str, Tensor, MatrixFormat, Tensor], Tensor]


def matrix_value(weights: Mapping[str, Tensor], name: str, format: MatrixFormat) -> Tensor:
    """W [in, out] float32 of the stored parts of a quantized matrix."""
    q, scale = weights[part(name, "q")], weights[part(name, "scale")].float()
    if format.weights == "fp8":
        return q.contiguous().view(torch.float8_e4m3fn).float() * scale
    return q.float() * (scale.repeat_interleave(format.group, 0) if format.group else scale)


def input_codes(x: Tensor, format: MatrixFormat, scale: Tensor, like: Tensor | None = None) -> Tensor:
    """X scaled, rounded half to even and saturated (ONNX QuantizeLinear): codes, kept in the type of x.

    Blocks have scales of their own, those of `like` (default x), and are multiplied by the scale's inverse, as ONNX
    Runtime's MatMulNBits does. Rows have zero points besides, which are taken off their codes again.
    """
    if format.input == "int8_rows":
        inverse, zero = row_grid(x if like is None else like)
        return (x * inverse).round().clamp(-128 - zero, 127 - zero)
    if format.input == "int8_blocks":
        return (x * _spread(_block_inverse(_block_largest(x if like is None else like, format)), format)).round()
    scaled = x / scale
    if format.input == "fp8":
        return scaled.clamp(-FP8_LARGEST, FP8_LARGEST).to(torch.float8_e4m3fn).to(x.dtype)
    return scaled.round().clamp(-128, 127)


def code_scale(x: Tensor, format: MatrixFormat, scale: Tensor) -> Tensor:
    """What a code of x is worth: the static scale, or [..., in] of the blocks'."""
    if format.input == "int8_blocks":
        return _spread(_block_largest(x, format) / INT8_LARGEST, format)
    if format.input == "int8_rows":
        inverse, _ = row_grid(x)
        return (torch.ones_like(inverse) / inverse).expand_as(x)
    return scale


def row_grid(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes for every unit, and the code of 0, of rows x [..., in] -> two tensors [..., 1].

    The codes -128..127 span the row and 0; 0 has a code of its own. In the arithmetic of XNNPACK, bit by bit.
    """
    low, high = x.amin(-1, keepdim=True).clamp(max=0), x.amax(-1, keepdim=True).clamp(min=0)
    span = high - low
    inverse = torch.where(span > 0, torch.full_like(span, 255.0) / span, torch.ones_like(span))
    from_low, from_high = -128 - low * inverse, 127 - high * inverse
    # the end whose error is the smaller one decides
    nearer = torch.where((-128 + low * inverse) + (127 + high * inverse) > 0, from_low, from_high)
    return inverse, nearer.clamp(-128, 127).round()


def round_input(x: Tensor, format: MatrixFormat, scale: Tensor) -> Tensor:
    """X as its codes say (ONNX QuantizeLinear and DequantizeLinear)."""
    return input_codes(x, format, scale) * code_scale(x, format, scale)


def round_named(weight: str, x: Tensor, format: MatrixFormat, scale: Tensor) -> Tensor:
    """`round_input`, whatever the matrix."""
    return round_input(x, format, scale)


def _block_largest(x: Tensor, format: MatrixFormat) -> Tensor:
    return x.unflatten(-1, (-1, format.group)).abs().amax(-1)


def _block_inverse(largest: Tensor) -> Tensor:
    numerator = torch.full_like(
        largest, INT8_LARGEST
    )  # of a number, torch would multiply by the reciprocal: other bits
    return torch.where(largest > 0, numerator / largest, torch.zeros_like(largest))


def _spread(blocks: Tensor, format: MatrixFormat) -> Tensor:
    return blocks.repeat_interleave(format.group, -1)
