"""Named passes over a captured vision graph (onnx_ir): dimension names, clean metadata, fp16 storage; and saving."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir

from linmu.formats.state_precision import LARGEST_HALF
from linmu.specs import TensorSpec

DERIVED = ("positions", "prefix")  # worked out at export (perhaps interpolated): no weights that a student could round


def name_dimensions(model: ir.Model, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
    """Give graph inputs and outputs the shapes of their specs ("patches" instead of "4*merged")."""
    for values, specs in ((model.graph.inputs, inputs), (model.graph.outputs, outputs)):
        for value, spec in zip(values, specs, strict=True):
            value.name, value.shape = spec.name, ir.Shape(spec.shape)


SCOPES = "pkg.torch.onnx.name_scopes"  # where the capture notes the modules that a node came from, outermost first


def name_nodes(model: ir.Model) -> None:
    """Name every node after the module it came from ("layers.0.mlp.fc1.MatMul"): errors can then say whose it is."""
    counts: Counter[str] = Counter()
    for node in model.graph.all_nodes():
        try:
            scopes = ast.literal_eval(node.metadata_props.get(SCOPES, "[]"))
        except (SyntaxError, ValueError):  # a torch that notes them otherwise
            scopes = []
        module = str(scopes[-2]) if len(scopes) > 1 else ""  # the last one is the node's own name
        base = f"{module}.{node.op_type}" if module else node.op_type
        counts[base] += 1
        node.name = base if counts[base] == 1 else f"{base}_{counts[base]}"


def strip_metadata(model: ir.Model) -> None:
    """Drop stack traces and file names of the capturing machine: the file depends on the model alone."""
    model.metadata_props.clear()
    model.doc_string = None
    graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for graph in graphs:
        graph.metadata_props.clear()
        graph.doc_string = None
        for node in graph.all_nodes():
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()


def store_weights_fp16(model: ir.Model, smallest: int = 1024) -> int:
    """Store float32 weights of at least `smallest` elements as fp16 behind a Cast; compute stays fp32.

    Returns how many. A weight that fp16 cannot hold (over 65504) stays as it is.
    """
    stored = 0
    for name, value in list(model.graph.initializers.items()):
        weight = value.const_value
        if name in DERIVED or value.dtype != ir.DataType.FLOAT or weight is None or weight.size < smallest:
            continue
        array = weight.numpy()
        if not np.abs(array).max() <= LARGEST_HALF:
            continue
        half = ir.Value(
            name=f"{name}.fp16",
            shape=value.shape,
            type=ir.TensorType(ir.DataType.FLOAT16),
            const_value=ir.tensor(array.astype(np.float16), name=f"{name}.fp16"),
        )
        cast = ir.node("Cast", [half], {"to": ir.DataType.FLOAT.value}, name=f"cast.{name}")
        cast.outputs[0].name = f"{name}.fp32"
        value.replace_all_uses_with(cast.outputs[0])
        del model.graph.initializers[name]
        model.graph.register_initializer(half)
        model.graph.insert_before(model.graph[0], cast)
        stored += 1
    return stored


def save_with_data(model: ir.Model, path: Path) -> Path:
    """Write `path` and all weights to one file beside it, `<stem>.data`; returns the data file's path."""
    data = path.with_suffix(".data")
    data.unlink(missing_ok=True)  # an old file would be appended to or kept
    ir.save(model, path, external_data=data.name, size_threshold_bytes=256)
    return data
