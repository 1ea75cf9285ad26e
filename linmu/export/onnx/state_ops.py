"""Recurrent states at the border of a call as ONNX nodes: read into float32, rounded once (state_precision)."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto

from linmu.export.onnx.graph_builder import GraphBuilder
from linmu.formats.state_precision import LARGEST_CODE, LARGEST_HALF
from linmu.step.form import DecoderForm


class StateOps:
    """read_state and write_state of linmu.step.ops.Ops, in standard operators that TensorRT 10.3 reads.

    It casts no int8: codes come and go through DequantizeLinear and QuantizeLinear with scale 1 (half to even), and
    the scales of the rows, which are not known before the run, are factors beside them.
    """

    graph: GraphBuilder

    def node(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """A standard operator."""
        return self.graph.node(op, inputs, outputs, **attributes)

    def read_state(self, stored: dict[str, str], form: DecoderForm) -> str:
        if form.state == "fp16":
            return self.node("Cast", stored["recurrent"], to=TensorProto.FLOAT)
        if form.state == "int8":
            codes = self.node("DequantizeLinear", stored["recurrent"], *self._unit())
            return self.node("Mul", codes, stored["recurrent_scale"])
        return stored["recurrent"]

    def write_state(self, state: str, form: DecoderForm) -> dict[str, str]:
        if form.state == "fp16":
            low, high = (self.graph.const(limit, np.float32) for limit in (-LARGEST_HALF, LARGEST_HALF))
            return {"recurrent": self.node("Cast", self.node("Clip", state, low, high), to=TensorProto.FLOAT16)}
        if form.state == "fp32":
            return {"recurrent": state}
        rows = self.graph.const([-1])
        high, low = (self.node(op, state, rows, keepdims=1) for op in ("ReduceMax", "ReduceMin"))
        largest = self.node("Max", high, self.node("Neg", low))
        scale = self.node("Div", largest, self.graph.const(float(LARGEST_CODE), np.float32))
        zero, one = (self.graph.const(value, np.float32) for value in (0.0, 1.0))
        divisor = self.node("Where", self.node("Greater", scale, zero), scale, one)
        codes = self.node("QuantizeLinear", self.node("Div", state, divisor), *self._unit())
        return {"recurrent": codes, "recurrent_scale": scale}

    def _unit(self) -> tuple[str, str]:
        """Scale 1 and the zero point that makes the codes int8."""
        return self.graph.const(1.0, np.float32), self.graph.zero(TensorProto.INT8)
