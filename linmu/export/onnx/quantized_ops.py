"""Products with quantized matrices as ONNX nodes: Q/DQ in standard operators, or ONNX Runtime's MatMulNBits."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto

from linmu.export.onnx.graph_builder import MICROSOFT, GraphBuilder
from linmu.formats.matrix_format import MatrixFormat, part
from linmu.step.form import DecoderForm

INPUT_TYPES = {"int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN}
FLOAT_INPUTS, INT8_INPUTS = 1, 4  # accuracy levels of MatMulNBits


class QuantizedOps:
    """The products of linmu.step.ops.Ops for weights that `form.quantized` names."""

    graph: GraphBuilder
    form: DecoderForm

    def product(self, x: str, weight: str) -> str:
        """X @ W of a quantized matrix, its input's factor and rounding included."""
        format = self.form.quantized[weight]
        x = self.scaled(x, weight)
        if format.static_input:
            x = self._rounded(x, weight, format)
        if self.graph.stored[part(weight, "q")].packing == "blocks":
            return self._few_bits(x, weight, format)
        return self.graph.node("MatMul", [x, self.value(weight)])

    def scaled(self, x: str, weight: str) -> str:
        """The input times its factor, where it has one."""
        factor = part(weight, "pre")
        return self.graph.node("Mul", [x, self.graph.weight(factor)]) if self.form.has(factor) else x

    def value(self, weight: str) -> str:
        """W [in, out] by DequantizeLinear, in the type of the scales."""
        format = self.form.quantized[weight]
        axes: dict[str, Any] = {} if format.weights == "fp8" else {"axis": 0 if format.group else 1}
        if format.group:
            axes["block_size"] = format.group
        inputs = [self.graph.raw(part(weight, "q")), self.graph.raw(part(weight, "scale"))]
        return self.graph.node("DequantizeLinear", inputs, **axes)

    def _rounded(self, x: str, weight: str, format: MatrixFormat) -> str:
        scale = self.graph.raw(part(weight, "input_scale"))
        zero = self.graph.zero(INPUT_TYPES[format.input])
        codes = self.graph.node("QuantizeLinear", [x, scale, zero])
        return self.graph.node("DequantizeLinear", [codes, scale, zero])

    def _few_bits(self, x: str, weight: str, format: MatrixFormat) -> str:
        columns, rows = self.graph.stored[part(weight, "scale")].shape[0], self._rows(weight, format)
        inputs = [x, self.graph.raw(part(weight, "q")), self.graph.raw(part(weight, "scale"))]
        return self.graph.node(
            "MatMulNBits",
            inputs,
            domain=MICROSOFT,
            K=rows,
            N=columns,
            bits=format.bits,
            block_size=format.group,
            accuracy_level=INT8_INPUTS if format.input else FLOAT_INPUTS,
        )

    def _rows(self, weight: str, format: MatrixFormat) -> int:
        return self.graph.stored[part(weight, "scale")].shape[1] * format.group

    def table_rows(self, ids: str, weight: str) -> str:
        """Embeddings [B,S,D] read from a head in blocks."""
        format = self.form.quantized[weight]
        codes = self.graph.node("Gather", [self.graph.raw(part(weight, "q")), ids], axis=0)  # [B, S, D / g, bytes]
        values = self.graph.node("Cast", [codes], to=TensorProto.FLOAT)
        if format.bits == 4:
            values = self._nibbles(values, format)
        offset = self.graph.const(float(1 << (format.bits - 1)), np.float32)
        values = self.graph.node("Sub", [values, offset])  # [B, S, D / g, g]
        scale = self.graph.node("Gather", [self.graph.raw(part(weight, "scale")), ids], axis=0)
        scale = self.graph.node("Unsqueeze", [scale, self.graph.const([-1])])
        rows = self.graph.node("Mul", [values, scale])
        return self.graph.node("Reshape", [rows, self.graph.const([0, 0, self._rows(weight, format)])])

    def _nibbles(self, pairs: str, format: MatrixFormat) -> str:
        """Two codes a byte, low half first: [B,S,n,g/2] -> [B,S,n,g], in float32 as all of this."""
        sixteen = self.graph.const(16.0, np.float32)
        high = self.graph.node("Floor", [self.graph.node("Div", [pairs, sixteen])])
        low = self.graph.node("Sub", [pairs, self.graph.node("Mul", [high, sixteen])])
        both = [self.graph.node("Unsqueeze", [half, self.graph.const([-1])]) for half in (low, high)]
        stacked = self.graph.node("Concat", both, axis=-1)
        return self.graph.node("Reshape", [stacked, self.graph.const([0, 0, -1, format.group])])
