"""One data file for all graphs of a bundle: every weight stands in it once, streamed tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import TensorProto

from linmu.formats.matrix_format import MatrixFormat, part
from linmu.formats.packing import pack, pack_scale, packing_of
from linmu.step.form import is_matrix

PAGE = 4096  # lets runtimes map single tensors
SMALL, SMALL_ALIGNMENT = 16 * PAGE, 64  # smaller tensors lie close together: pages of their own add up in tiny models


def alignment_of(nbytes: int) -> int:
    """What the offset of a tensor of so many bytes is a multiple of."""
    return PAGE if nbytes >= SMALL else SMALL_ALIGNMENT


@dataclass(frozen=True)
class StoredWeight:
    """Where a weight lies: numpy dtype and shape of its bytes, byte offset and length in the data file.

    Of quantized integers: `packing` (packing), and what a graph says of them where that is something else than
    numpy does: `element` (an ONNX element type) and `dims`.
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int
    length: int
    packing: str = ""
    element: int | None = None
    dims: tuple[int, ...] | None = None


def write_weights(
    path: Path,
    weights: dict[str, Callable[[], torch.Tensor]],
    half: bool,
    progress: Callable[[int, int], None] | None = None,
    float32_matrices: Collection[str] = (),
    quantized: Mapping[str, MatrixFormat] | None = None,
    fused: bool = False,
) -> dict[str, StoredWeight]:
    """Write all weights to `path` as float32; one tensor in memory at a time.

    With `half` matrices are written as float16, those named in `whole` excepted. Integers and scales of `quantized`
    matrices are packed for ONNX Runtime's own kernels (`fused`) or for standard operators.
    """
    parts = {part(name, kind): (kind, format) for name, format in (quantized or {}).items() for kind in ("q", "scale")}
    stored = {}
    with path.open("wb") as file:
        for count, (name, thunk) in enumerate(weights.items(), 1):
            facts: dict[str, Any] = {}
            if name in parts:
                kind, format = parts[name]
                halved = half and not fused and name.removesuffix(f".{kind}") not in float32_matrices
                array, facts = _packed(thunk().numpy(), kind, format, packing_of(format, fused), halved)
            else:
                array = thunk().detach().to(torch.float32).contiguous().numpy()
                if half and is_matrix(name) and name not in float32_matrices:
                    array = array.astype(np.float16)
            file.write(b"\0" * (-file.tell() % alignment_of(array.nbytes)))
            stored[name] = StoredWeight(array.dtype, array.shape, file.tell(), array.nbytes, **facts)
            file.write(np.ascontiguousarray(array).data)
            if progress is not None:
                progress(count, len(weights))
    return stored


def _packed(
    array: np.ndarray, kind: str, format: MatrixFormat, packing: str, half: bool
) -> tuple[np.ndarray, dict[str, Any]]:
    """Bytes of a quantized matrix's integers or scales, and what StoredWeight says of them."""
    if kind == "scale":
        scale = pack_scale(array, packing)  # float16 numbers in any case (linmu.formats.matrix_format)
        return scale.astype(np.float16) if half and not format.input else scale, {}
    facts: dict[str, Any] = {"packing": packing}
    if packing == "nibbles":
        facts |= {"element": TensorProto.INT4, "dims": array.shape}
    elif format.weights == "fp8":
        facts |= {"element": TensorProto.FLOAT8E4M3FN, "dims": array.shape}
    return pack(array, format, packing), facts
