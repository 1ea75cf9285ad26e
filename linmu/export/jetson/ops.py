"""The step form's operations for TensorRT: PlainOps within what TensorRT 10.3 parses and builds well.

Matrices stored as float16 are multiplied in half precision, with the roundings of linmu.step.half_ops: both factors
to float16, sums in float32, the result to float16. TensorRT's networks are strongly typed, and the way to ask for half
precision products that are summed in float32 is a MatMul between Casts: float16 factors to float32 in front of it, its
result to float16 behind it. TensorRT fuses the five nodes into one kernel and keeps the weights in float16.
"""

from __future__ import annotations

import numpy as np

from linmu.export.onnx.ops import FLOAT
from linmu.export.onnx.plain_ops import PlainOps
from linmu.formats.matrix_format import part
from linmu.step.form import DecoderForm

FLOAT16 = 10  # onnx.TensorProto


class JetsonOps(PlainOps):
    """PlainOps with half products, one sequence, and no operator that TensorRT 10.3 turns into a loop."""

    # ---- matrix products -----------------------------------------------------------------------------------------
    def _is_half(self, weight: str) -> bool:
        name = part(weight, "scale") if weight in self.form.quantized else weight
        return name in self.graph.stored and self.graph.stored[name].dtype == np.float16

    def product(self, x: str, weight: str) -> str:
        """A half product with a matrix whose weights alone are quantized, cast as `linear` does.

        TensorRT keeps the integers (the demo's step engine is as small as with a float16 MatMul). A float16 MatMul
        would be another function in ONNX Runtime: it multiplies in float32 and drops roundings next to its own casts.
        """
        if not self._is_half(weight):
            return super().product(x, weight)
        value = self.node("Cast", self.value(weight), to=FLOAT)
        return self.half(self.node("MatMul", self.half(self.scaled(x, weight)), value))

    def half(self, x: str) -> str:
        """X rounded to float16, as float32."""
        return self.node("Cast", self.node("Cast", x, to=FLOAT16), to=FLOAT)

    def linear(self, x: str, weight: str) -> str:
        if weight in self.form.quantized or not self._is_half(weight):
            return super().linear(x, weight)
        y = self.half(self.node("MatMul", self.half(x), self.graph.weight(weight)))
        return self.add_bias(y, weight + "_bias") if self.form.has(weight + "_bias") else y

    def head(self, x: str, weight: str) -> str:
        if weight in self.form.quantized or not self._is_half(weight):
            return super().head(x, weight)
        rows = self.half(self.node("Reshape", x, self.shape(-1, self.form.hidden)))
        logits = self.half(self.node("Gemm", rows, self.graph.weight(weight), transB=1))
        return self.node("Reshape", logits, self.shape(-1, 1, self.form.vocab))

    def attend_rows(self, q, k, v, bias, form: DecoderForm) -> str:
        if not self._is_half(self.graph.scope + "swin"):
            return super().attend_rows(q, k, v, bias, form)
        q = self.node("Mul", q, self.number(form.head_dim**-0.5))
        split = lambda x, perm: self.node("Transpose", self.unpack(x, form.heads), perm=perm)  # noqa: E731
        q, k, v = split(q, [0, 2, 1, 3]), split(k, [0, 2, 3, 1]), split(v, [0, 2, 1, 3])
        scores = self.half(self.node("MatMul", self.half(q), self.half(k)))  # [W, H, L, L]
        weights = self.node("Softmax", self.add(scores, bias), axis=-1)
        y = self.half(self.node("MatMul", self.half(weights), self.half(v)))
        return self.pack(self.node("Transpose", y, perm=[0, 2, 1, 3]), form.heads)

    # ---- one sequence --------------------------------------------------------------------------------------------
    def batch_index(self, position_ids: str, form: DecoderForm) -> str:
        self.single_token = True
        index = self.graph.const([[0]])
        self._per_sequence.add(index)
        return index

    # ---- the scan ------------------------------------------------------------------------------------------------
    def running_sum(self, x: str, size: int | None) -> str:
        """Sums of masked copies: a CumSum becomes a loop with a pass per element in TensorRT before 10.5.

        Not a product with a triangle of ones: on a GPU that may be rounded to TF32, and these sums are exponents.
        """
        if size is None:
            place = self.count(x, -1)
            before = self.node(
                "GreaterOrEqual",
                self.node("Unsqueeze", place, self.graph.const([1])),
                self.node("Unsqueeze", place, self.graph.const([0])),
            )
            mask = self.node("Cast", before, to=FLOAT)
        else:
            mask = self.graph.const(np.tril(np.ones((size, size))), np.float32)
        copies = self.node("Mul", self.node("Unsqueeze", x, self.graph.const([-2])), mask)
        return self.node("ReduceSum", copies, self.graph.const([-1]), keepdims=0)
