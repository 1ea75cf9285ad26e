"""The decoder's graphs: token_embedding, prefill and step, written from one step form with one table of operations."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from linmu.export.onnx.graph_builder import OPSET, GraphBuilder, all_nodes, nodes_per_layer
from linmu.export.onnx.ops import OnnxOps
from linmu.export.onnx.plain_ops import PlainOps
from linmu.export.onnx.weight_file import StoredWeight
from linmu.formats.decoder_file import DecoderFile, WeightEntry, write_decoder_file
from linmu.formats.matrix_format import part
from linmu.layout import LAYOUT_SPECS
from linmu.specs import Dim, GraphSpec, TensorSpec
from linmu.step import decoder
from linmu.step.call_specs import fill_spec, prefill_inputs, state_io, step_inputs
from linmu.step.form import DecoderForm
from linmu.verification.hidden import HIDDEN


@dataclass(frozen=True)
class GraphReport:
    """Size of one graph: all its nodes and those that belong to one decoder layer (mean)."""

    nodes: int
    nodes_per_layer: float


@dataclass(frozen=True)
class GraphStyle:
    """How the decoder's graphs are written.

    ops: its name in the manifest ("fused" or "plain"); table: the operations; opset: of ONNX; batch: sequences of a
    decode step, a number or a name; fixed_windows: packed window rows have one length, whatever the prompt;
    prefill_batch: sequences of a prefill call, more than one where each has one text token.
    """

    ops: str
    table: type[OnnxOps]
    opset: int = OPSET
    batch: Dim = "batch"
    fixed_windows: bool = False
    prefill_batch: Dim = 1


FUSED, PLAIN = GraphStyle("fused", OnnxOps, prefill_batch="batch"), GraphStyle("plain", PlainOps)


def write_decoder_graphs(
    folder: Path, form: DecoderForm, stored: dict[str, StoredWeight], data_file: str, style: GraphStyle
) -> tuple[dict[str, GraphSpec], dict[str, GraphReport]]:
    """Write token_embedding.onnx, prefill.onnx, step.onnx and decoder.json."""
    writers = {"token_embedding": _embedding_graph, "prefill": _prefill_graph, "step": _step_graph}
    specs, reports = {}, {}
    for name, write in writers.items():
        graph = GraphBuilder(stored, data_file, style.opset)
        specs[name] = write(folder / f"{name}.onnx", graph, style.table(graph, form), form, style)
        reports[name] = GraphReport(sum(1 for _ in all_nodes(graph.nodes)), nodes_per_layer(graph.nodes, form.layers))
    entries = {name: WeightEntry(w.dtype.name, w.shape, w.offset) for name, w in stored.items()}
    packing = {name: stored[part(name, "q")].packing for name in form.quantized}
    write_decoder_file(folder, DecoderFile(data_file, entries, form.to_json(), packing))
    return specs, reports


def _embedding_graph(path: Path, graph: GraphBuilder, ops: OnnxOps, form: DecoderForm, style: GraphStyle) -> GraphSpec:
    ids = TensorSpec("input_ids", "int64", (style.batch, "tokens"))
    out = TensorSpec("inputs_embeds", "float32", (style.batch, "tokens", form.hidden))
    return graph.save(path, [ids], {out.name: (ops.embed(ids.name, "token_embedding"), out)})


def _step_graph(path: Path, graph: GraphBuilder, ops: OnnxOps, form: DecoderForm, style: GraphStyle) -> GraphSpec:
    past, present = state_io(form, style.batch)
    fill = fill_spec(form, style.batch)
    state = {spec.name: spec.name for spec in past}
    logits, new = decoder.step(ops, form, "input_ids", "position_ids", state, fill[0].name if fill else None)
    return _save(path, graph, step_inputs(form, style.batch), logits, new, present, form, style.batch)


def _prefill_graph(path: Path, graph: GraphBuilder, ops: OnnxOps, form: DecoderForm, style: GraphStyle) -> GraphSpec:
    batch = style.prefill_batch
    past, present = state_io(form, batch)
    layout = {spec.name.removeprefix("layout."): spec.name for spec in LAYOUT_SPECS} if form.vision else None
    fill = fill_spec(form, batch)
    logits, new = decoder.prefill(
        ops,
        form,
        "inputs_embeds",
        "position_ids",
        {spec.name: spec.name for spec in past},
        layout,
        "deepstack" if form.deepstack else None,
        fill[0].name if fill else None,
    )
    inputs = prefill_inputs(form, style.fixed_windows, batch)
    return _save(path, graph, inputs, logits, new, present, form, batch, {ops.hidden: HIDDEN})


def _save(path, graph, inputs, logits, new, present, form: DecoderForm, batch: Dim, named=None) -> GraphSpec:
    out = TensorSpec("logits", "float32", (batch, 1, form.vocab))
    outputs = {out.name: (logits, out)} | {spec.name: (new[spec.name], spec) for spec in present}
    return graph.save(path, inputs, outputs, named)
