"""Builds one ONNX graph node by node: names nodes after their module, merges equal nodes, shares external weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from linmu.export.onnx.weight_file import StoredWeight
from linmu.specs import GraphSpec, TensorSpec

MICROSOFT = "com.microsoft"
OPSET = 21
FUSED_OPSET = 24  # the first with TensorScatter; Attention is older
INT4_OPSET = 21  # the first that knows int4
IR_VERSION = 10
DTYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "int8": TensorProto.INT8,
    "int64": TensorProto.INT64,
    "bool": TensorProto.BOOL,
}


class GraphBuilder:
    """Collects nodes; values are their names (str). All operators used are pure, so equal nodes are made once."""

    def __init__(self, stored: dict[str, StoredWeight], data_file: str, opset: int = OPSET):
        self.stored, self.data_file, self.opset = stored, data_file, opset
        self.scope = ""
        self.nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._known: dict[tuple, list[str]] = {}
        self._names: Counter[str] = Counter()

    def node(
        self,
        op: str,
        inputs: Sequence[str],
        outputs: int = 1,
        *,
        domain: str = "",
        used: Sequence[int] | None = None,
        **attributes: Any,
    ) -> Any:
        """Add a node; returns its output name, or a list when `outputs` > 1. Outputs not in `used` are left out."""
        key = (op, domain, tuple(inputs), outputs, repr(sorted(attributes.items())))
        if key not in self._known:
            base = self._unique(f"{self.scope}{op}")
            names = [f"{base}:{i}" if used is None or i in used else "" for i in range(outputs)]
            names = [base] if outputs == 1 else names
            self.nodes.append(helper.make_node(op, list(inputs), names, name=base, domain=domain, **attributes))
            self._known[key] = names
        names = self._known[key]
        return names[0] if outputs == 1 else names

    def branch(self, condition: str, then: Callable[[], list[str]], otherwise: Callable[[], list[str]]) -> list[str]:
        """An If node: each callable adds its nodes to a subgraph and returns its float32 outputs."""
        bodies = {"then_branch": self._body(then), "else_branch": self._body(otherwise)}
        base = self._unique(f"{self.scope}If")
        outputs = [f"{base}:{i}" for i in range(len(bodies["then_branch"].output))]
        self.nodes.append(helper.make_node("If", [condition], outputs, name=base, **bodies))
        return outputs

    def _body(self, build: Callable[[], list[str]]) -> onnx.GraphProto:
        outer, known_outside = self.nodes, dict(self._known)
        self.nodes = []
        values = [self.node("Identity", [v]) if v not in self._outputs() else v for v in build()]
        infos = [helper.make_tensor_value_info(value, TensorProto.FLOAT, None) for value in values]
        body = helper.make_graph(_needed(self.nodes, values), self._unique(f"{self.scope}body"), [], infos)
        constants = {key: names for key, names in self._known.items() if key[0] in ("const", "zero")}
        self.nodes, self._known = outer, known_outside | constants  # constants of a body are seen outside, nodes not
        return body

    def _outputs(self) -> set[str]:
        return {output for node in self.nodes for output in node.output}

    def const(self, value: Any, dtype: Any = np.int64) -> str:
        """A small constant, stored inside the graph once."""
        array = np.asarray(value, dtype)
        key = ("const", array.dtype.str, array.shape, array.tobytes())
        if key not in self._known:
            name = self._unique("const")
            self._initializers[name] = numpy_helper.from_array(array, name)
            self._known[key] = [name]
        return self._known[key][0]

    def weight(self, name: str) -> str:
        """A weight of the shared data file as float32 (a Cast follows weights stored as float16)."""
        is_float32 = self.stored[name].dtype == np.float32
        return self.raw(name) if is_float32 else self.node("Cast", [self.raw(name)], to=TensorProto.FLOAT)

    def raw(self, name: str) -> str:
        """A weight of the shared data file as it is stored."""
        if name not in self._initializers:
            stored = self.stored[name]
            element = stored.element or helper.np_dtype_to_tensor_dtype(stored.dtype)
            dims = stored.shape if stored.dims is None else stored.dims
            tensor = TensorProto(name=name, dims=dims, data_type=element)
            tensor.data_location = TensorProto.EXTERNAL
            place = {"location": self.data_file, "offset": stored.offset, "length": stored.length}
            for field, value in place.items():
                tensor.external_data.add(key=field, value=str(value))
            self._initializers[name] = tensor
        return name

    def zero(self, element: int) -> str:
        """A scalar zero of an ONNX element type."""
        key = ("zero", element)
        if key not in self._known:
            name = self._unique("zero")
            self._initializers[name] = helper.make_tensor(name, element, [], b"\0", raw=True)
            self._known[key] = [name]
        return self._known[key][0]

    def save(
        self,
        path: Path,
        inputs: Sequence[TensorSpec],
        outputs: dict[str, tuple[str, TensorSpec]],
        named: dict[str, str] | None = None,
    ) -> GraphSpec:
        """Write the graph: `outputs` maps contract names to (value, spec), `named` values to names. -> its spec."""
        self._rename_outputs({value: name for name, (value, _) in outputs.items()} | (named or {}))
        domains = sorted({node.domain for node in all_nodes(self.nodes)} - {""})
        self.nodes = _needed(self.nodes, outputs)
        graph = helper.make_graph(
            self.nodes,
            path.stem,
            [_value_info(spec) for spec in inputs],
            [_value_info(spec) for _, spec in outputs.values()],
            list(self._initializers.values()),
        )
        int4 = any(tensor.data_type == TensorProto.INT4 for tensor in self._initializers.values())
        opset = max(self.opset, INT4_OPSET) if int4 else self.opset
        opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="linmu")
        path.write_bytes(model.SerializeToString())
        return GraphSpec(path.name, tuple(inputs), tuple(spec for _, spec in outputs.values()))

    def _rename_outputs(self, names: dict[str, str]) -> None:
        for node in self.nodes:
            for field in (node.input, node.output):
                field[:] = [names.get(value, value) for value in field]

    def _unique(self, base: str) -> str:
        self._names[base] += 1
        count = self._names[base]
        return base if count == 1 else f"{base}_{count}"


def _value_info(spec: TensorSpec) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(spec.name, DTYPES[spec.dtype], list(spec.shape))


def all_nodes(nodes: Sequence[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Every node, those of subgraphs included."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from all_nodes(attribute.g.node)


def _needed(nodes: Sequence[onnx.NodeProto], outputs: Iterable[str]) -> list[onnx.NodeProto]:
    """The nodes that `outputs` follow from, in their order."""
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if wanted.isdisjoint(node.output):
            continue
        kept.append(node)
        wanted.update(name for inner in all_nodes([node]) for name in inner.input)
        wanted.update(v.name for a in node.attribute if a.type == onnx.AttributeProto.GRAPH for v in a.g.output)
    return kept[::-1]


def nodes_per_layer(nodes: Sequence[onnx.NodeProto], layers: int) -> float:
    """Mean number of nodes that belong to a decoder layer."""
    return sum(node.name.startswith("layers.") for node in all_nodes(nodes)) / max(layers, 1)
