"""Where a graph's time goes: ONNX Runtime's own profile of repeated runs, added up by operator."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

# Operators whose constant inputs are read whole at every step; tables that are only looked up are not here.
READS_WEIGHTS = {"MatMul", "Gemm", "FusedMatMul", "MatMulNBits", "MatMulInteger", "FusedGemm"}


def profile_by_operator(path: Path, feeds: Mapping[str, np.ndarray], threads: int, runs: int = 20) -> list[dict]:
    """Rows {operator, nodes, ms, share}, slowest first, of one run of the graph at `path` (mean of `runs`)."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.enable_profiling = True
    with TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        warm_up = 3
        for _ in range(warm_up + runs):
            session.run(None, dict(feeds))
        events = json.loads(Path(session.end_profiling()).read_text())
    return add_up(events, warm_up, runs)


def add_up(events: list[dict[str, Any]], warm_up: int, runs: int) -> list[dict]:
    """Profile events of `warm_up + runs` equal runs -> rows by operator, warm-up left out; times in milliseconds."""
    durations: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            durations[event["args"]["op_name"], event["name"]].append(event["dur"] / 1e3)
    total: dict[str, float] = defaultdict(float)
    nodes: dict[str, int] = defaultdict(int)
    for (operator, _), times in durations.items():
        # Nodes without a name share one key: count how many events it has in a run.
        nodes[operator] += len(times) // (warm_up + runs)
        total[operator] += sum(times[-len(times) * runs // (warm_up + runs) :]) / runs
    whole = sum(total.values())
    rows = [{"operator": op, "nodes": nodes[op], "ms": ms, "share": ms / whole} for op, ms in total.items()]
    return sorted(rows, key=lambda row: -row["ms"])


def weight_bytes(path: Path) -> int:
    """Bytes of constants that one run of the graph reads whole (matrices; look-up tables are left out)."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    constants = {item.name: item for item in graph.initializer}
    # A matrix may reach its product through a transpose that the runtime folds away.
    behind = {node.output[0]: node.input[0] for node in graph.node if node.op_type in ("Transpose", "Identity", "Cast")}
    read = {behind.get(name, name) for node in graph.node if node.op_type in READS_WEIGHTS for name in node.input}
    return sum(_bytes(constants[name]) for name in read if name in constants)


def _bytes(tensor: Any) -> int:
    from onnx import helper

    bits = {"INT4": 4, "UINT4": 4}.get(_type_name(tensor))
    elements = int(np.prod(tensor.dims, dtype=np.int64))
    if bits:
        return elements * bits // 8
    return elements * np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize


def _type_name(tensor: Any) -> str:
    from onnx import TensorProto

    return TensorProto.DataType.Name(tensor.data_type)
