"""Quantized matrices and inputs as torch computes them: the reference that every graph is held to."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from linmu.matrix_format import FP8_LARGEST, INT8_LARGEST, MatrixFormat, part


def matrix_value(weights: Mapping[str, Tensor], name: str, format: MatrixFormat) -> Tensor:
    """W [in, out] float32 of the stored parts of a quantized matrix."""
    q, scale = weights[part(name, "q")], weights[part(name, "scale")].float()
    if format.weights == "fp8":
        return q.contiguous().view(torch.float8_e4m3fn).float() * scale
    return q.float() * (scale.repeat_interleave(format.group, 0) if format.group else scale)


def round_input(x: Tensor, format: MatrixFormat, scale: Tensor) -> Tensor:
    """X scaled, rounded half to even, saturated and scaled back (ONNX QuantizeLinear and DequantizeLinear)."""
    if format.input == "int8_blocks":
        blocks = x.unflatten(-1, (-1, format.group))
        largest = blocks.abs().amax(-1, keepdim=True)
        return ((blocks * block_inverse(largest)).round() * (largest / INT8_LARGEST)).flatten(-2)
    scaled = x / scale
    if format.input == "fp8":
        return scaled.clamp(-FP8_LARGEST, FP8_LARGEST).to(torch.float8_e4m3fn).to(x.dtype) * scale
    return scaled.round().clamp(-128, 127) * scale


def block_inverse(largest: Tensor) -> Tensor:
    """127 / max |x| of a block (0 for an empty one): ONNX Runtime's MatMulNBits multiplies by it before rounding."""
    return torch.where(largest > 0, INT8_LARGEST / largest, torch.zeros_like(largest))
