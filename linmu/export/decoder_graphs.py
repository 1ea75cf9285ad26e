"""The decoder's graphs: token_embedding, prefill and step, written from one step form with one table of operations."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from linmu.decoder_file import DecoderFile, WeightEntry, write_decoder_file
from linmu.export.graph_builder import GraphBuilder, all_nodes, nodes_per_layer
from linmu.export.onnx_ops import OnnxOps
from linmu.export.plain_ops import PlainOps
from linmu.export.weight_file import StoredWeight
from linmu.layout import LAYOUT_SPECS
from linmu.specs import Dim, GraphSpec, StateSpec, TensorSpec
from linmu.step import decoder
from linmu.step.form import DecoderForm


@dataclass(frozen=True)
class GraphReport:
    """Size of one graph: all its nodes and those that belong to one decoder layer (mean)."""

    nodes: int
    nodes_per_layer: float


def write_decoder_graphs(
    folder: Path, form: DecoderForm, stored: dict[str, StoredWeight], data_file: str, plain: bool
) -> tuple[dict[str, GraphSpec], dict[str, GraphReport]]:
    """Write token_embedding.onnx, prefill.onnx, step.onnx and decoder.json; `plain`: standard operators only."""
    writers = {"token_embedding": _embedding_graph, "prefill": _prefill_graph, "step": _step_graph}
    specs, reports = {}, {}
    for name, write in writers.items():
        graph = GraphBuilder(stored, data_file)
        ops = (PlainOps if plain else OnnxOps)(graph, form)
        specs[name] = write(folder / f"{name}.onnx", graph, ops, form)
        reports[name] = GraphReport(sum(1 for _ in all_nodes(graph.nodes)), nodes_per_layer(graph.nodes, form.layers))
    entries = {name: WeightEntry(w.dtype.name, w.shape, w.offset) for name, w in stored.items()}
    write_decoder_file(folder, DecoderFile(data_file, entries, form.to_json()))
    return specs, reports


def _position_spec(form: DecoderForm, batch: Dim, length: Dim) -> TensorSpec:
    return TensorSpec("position_ids", "int64", (3, batch, length) if form.rope_axes == 3 else (batch, length))


def _state_io(form: DecoderForm, batch: Dim) -> tuple[list[TensorSpec], list[TensorSpec]]:
    shaped = [(spec, (batch, *spec.shape[1:])) for spec in form.state_specs()]
    return (
        [TensorSpec(spec.name, spec.dtype, shape) for spec, shape in shaped],
        [TensorSpec(spec.output, spec.dtype, shape) for spec, shape in shaped],
    )


def _fill_spec(form: DecoderForm, batch: Dim) -> list[TensorSpec]:
    """Tokens seen before this call; an input only where a text window needs it."""
    return [TensorSpec("past_length", "int64", (batch,))] if form.mmate.text_window else []


def _embedding_graph(path: Path, graph: GraphBuilder, ops: OnnxOps, form: DecoderForm) -> GraphSpec:
    ids = TensorSpec("input_ids", "int64", ("batch", "tokens"))
    out = TensorSpec("inputs_embeds", "float32", ("batch", "tokens", form.hidden))
    return graph.save(path, [ids], {out.name: (ops.embed(ids.name, "token_embedding"), out)})


def _step_graph(path: Path, graph: GraphBuilder, ops: OnnxOps, form: DecoderForm) -> GraphSpec:
    past, present = _state_io(form, "batch")
    ids, positions = TensorSpec("input_ids", "int64", ("batch", 1)), _position_spec(form, "batch", 1)
    fill = _fill_spec(form, "batch")
    state = {spec.name: spec.name for spec in past}
    logits, new = decoder.step(ops, form, ids.name, positions.name, state, fill[0].name if fill else None)
    return _save(path, graph, [ids, positions, *fill, *past], logits, new, present, form, "batch")


def _prefill_graph(path: Path, graph: GraphBuilder, ops: OnnxOps, form: DecoderForm) -> GraphSpec:
    past, present = _state_io(form, 1)
    embeds = TensorSpec("inputs_embeds", "float32", (1, "tokens", form.hidden))
    inputs = [embeds, _position_spec(form, 1, "tokens")]
    layout = deepstack = None
    if form.vision:
        inputs += LAYOUT_SPECS
        layout = {spec.name.removeprefix("layout."): spec.name for spec in LAYOUT_SPECS}
    if form.deepstack:
        inputs.append(TensorSpec("deepstack", "float32", (form.deepstack, 1, "tokens", form.hidden)))
        deepstack = "deepstack"
    fill = _fill_spec(form, 1)
    state = {spec.name: spec.name for spec in past}
    logits, new = decoder.prefill(
        ops, form, embeds.name, "position_ids", state, layout, deepstack, fill[0].name if fill else None
    )
    return _save(path, graph, [*inputs, *fill, *past], logits, new, present, form, 1)


def _save(path, graph, inputs, logits, new, present, form: DecoderForm, batch: Dim) -> GraphSpec:
    out = TensorSpec("logits", "float32", (batch, 1, form.vocab))
    outputs = {out.name: (logits, out)} | {spec.name: (new[spec.name], spec) for spec in present}
    return graph.save(path, inputs, outputs)


def manifest_states(form: DecoderForm) -> tuple[StateSpec, ...]:
    """State specs with the step graph's symbolic batch."""
    return tuple(
        StateSpec(s.name, s.output, s.dtype, ("batch", *s.shape[1:]), s.axes, s.init) for s in form.state_specs()
    )
