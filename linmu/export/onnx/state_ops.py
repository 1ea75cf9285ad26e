"""Recurrent states at the border of a call as ONNX nodes: read into float32, rounded once (state_precision)."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto

from linmu.export.onnx.graph_builder import GraphBuilder
from linmu.formats.state_precision import LARGEST_HALF
from linmu.step.form import DecoderForm


class StateOps:
    """read_state and write_state of linmu.step.ops.Ops, in standard operators that TensorRT 10.3 reads."""

    graph: GraphBuilder

    def node(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """A standard operator."""
        return self.graph.node(op, inputs, outputs, **attributes)

    def read_state(self, stored: str, form: DecoderForm) -> str:
        return self.node("Cast", stored, to=TensorProto.FLOAT) if form.state == "fp16" else stored

    def write_state(self, state: str, form: DecoderForm) -> str:
        if form.state != "fp16":
            return state
        low, high = (self.graph.const(limit, np.float32) for limit in (-LARGEST_HALF, LARGEST_HALF))
        return self.node("Cast", self.node("Clip", state, low, high), to=TensorProto.FLOAT16)
