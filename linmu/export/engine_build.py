"""Run as a program: parse and compile one ONNX file with TensorRT-RTX, without a GPU, and say in JSON how it went.

A program of its own, so that a crash of the builder does not take the export along and its memory is told apart.
Input: a JSON object on stdin with `file`, `profile` (of shape_profiles.py, for this graph) and `capability` ("SM86").
Output: one JSON line: seconds, engine_bytes, peak_bytes, layers, version, and `errors`, each with what is known of its
node and message.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from linmu.meter import peak_bytes

MESSAGE = 600  # characters of one error


def build(file: str, profile: dict[str, Any], capability: str) -> dict[str, Any]:
    """Parse and compile; never raises for what TensorRT refuses."""
    import tensorrt_rtx as trt

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(" ".join(message.split())[:MESSAGE])

    started, logger = time.perf_counter(), Logger()
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    found: dict[str, Any] = {"version": trt.__version__, "engine_bytes": None, "layers": 0, "errors": []}
    if parser.parse_from_file(file):
        config = builder.create_builder_config()
        config.clear_flag(trt.BuilderFlag.TF32)  # the scan's products must be float32
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, capability), 0)
        if profile:
            shapes = builder.create_optimization_profile()
            for name, item in profile.items():
                shapes.set_shape(name, item["min"], item["opt"], item["max"])
            config.add_optimization_profile(shapes)
        engine = builder.build_serialized_network(network, config)
        found["engine_bytes"] = None if engine is None else engine.nbytes
        found["layers"] = network.num_layers
        found["errors"] = [] if engine is not None else [{"message": text} for text in logger.errors[:3]]
    else:
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        found["errors"] = [
            {"node": e.node_name(), "operator": e.node_operator(), "message": " ".join(e.desc().split())[:MESSAGE]}
            for e in errors
        ]
    return found | {"seconds": round(time.perf_counter() - started, 3), "peak_bytes": peak_bytes()}


if __name__ == "__main__":
    print(json.dumps(build(**json.load(sys.stdin))))
