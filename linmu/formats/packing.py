"""How the integers of a quantized matrix lie in a bundle's data file (numpy only; a device reads them too).

    plain    [in, out], one byte each: int8, or the bits of fp8; scales [out] or []
    nibbles  int4 [in, out] in ONNX's packing: two per byte, the first in the low half, two's complement;
             scales [in / group, out]
    blocks   [out, in / group, group * bits / 8] uint8, offset by 2^(bits-1): ONNX Runtime's MatMulNBits;
             scales [out, in / group]
Low nibbles come first everywhere.
"""

from __future__ import annotations

import numpy as np

from linmu.formats.matrix_format import MatrixFormat

PACKINGS = ("plain", "nibbles", "blocks")


def packing_of(format: MatrixFormat, fused: bool) -> str:
    """How a matrix is packed: for ONNX Runtime's own kernels (`fused`), or for standard operators."""
    if fused and format.group and not format.static_input:
        return "blocks"
    return "nibbles" if format.weights == "int4" else "plain"


def pack(q: np.ndarray, format: MatrixFormat, packing: str) -> np.ndarray:
    """Integers [in, out] (one a byte) -> bytes in a packing."""
    if packing == "plain":
        return np.ascontiguousarray(q)
    if packing == "nibbles":
        return _pairs(q.reshape(-1).view(np.uint8) & np.uint8(15))
    offset = 1 << (format.bits - 1)
    codes = (q.T.astype(np.int16) + offset).astype(np.uint8).reshape(q.shape[1], -1, format.group)
    return np.ascontiguousarray(codes) if format.bits == 8 else _pairs(codes)


def unpack(packed: np.ndarray, format: MatrixFormat, packing: str, shape: tuple[int, int]) -> np.ndarray:
    """Bytes in a packing -> integers [in, out] (int8; uint8 bits for fp8)."""
    rows, columns = shape
    if packing == "plain":
        return packed.reshape(shape)
    if packing == "nibbles":
        codes = _single(packed.reshape(-1)).view(np.int8)
        return np.where(codes > 7, codes - 16, codes).astype(np.int8).reshape(shape)
    offset_codes = packed if format.bits == 8 else _single(packed)
    signed = offset_codes.reshape(columns, rows).astype(np.int16) - (1 << (format.bits - 1))
    return np.ascontiguousarray(signed.T.astype(np.int8))


def pack_scale(scale: np.ndarray, packing: str) -> np.ndarray:
    """Scales as linmu.formats.matrix_format has them -> as a packing wants them."""
    return np.ascontiguousarray(scale.T) if packing == "blocks" else np.ascontiguousarray(scale)


def block_rows(packed: np.ndarray, scale: np.ndarray, format: MatrixFormat, index: np.ndarray) -> np.ndarray:
    """Columns `index` of a matrix in blocks, as rows [n, in] float32: embeddings read from a packed head."""
    codes = packed[index] if format.bits == 8 else _single(packed[index])
    values = codes.astype(np.float32) - np.float32(1 << (format.bits - 1))
    return (values.reshape(len(index), -1, format.group) * scale[index][..., None]).reshape(len(index), -1)


def _pairs(codes: np.ndarray) -> np.ndarray:
    """Two codes a byte along the last axis (an odd end is filled with 0)."""
    if codes.shape[-1] % 2:
        codes = np.concatenate([codes, np.zeros_like(codes[..., :1])], axis=-1)
    return codes[..., 0::2] | (codes[..., 1::2] << np.uint8(4))


def _single(packed: np.ndarray) -> np.ndarray:
    """The codes of `_pairs`, [..., 2 n] uint8."""
    codes = np.stack([packed & np.uint8(15), packed >> np.uint8(4)], axis=-1)
    return codes.reshape(*packed.shape[:-1], -1)
