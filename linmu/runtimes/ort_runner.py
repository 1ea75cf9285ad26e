"""ONNX Runtime: weights in memory once, states in two buffer sets that a step swaps without copying."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort

from linmu.errors import BundleError
from linmu.formats.bundle import Bundle, check_graph_io
from linmu.formats.decoder_file import embedding_rows, open_decoder
from linmu.formats.graph_check import check_graph_file
from linmu.formats.matrix_format import part
from linmu.layout import PromptLayout, layout_tensors
from linmu.layout.vision_grid import vision_inputs
from linmu.runtimes.base import TILES_AT_ONCE, PromptPiece, VisionFeatures
from linmu.runtimes.contract import check_contract
from linmu.runtimes.ort_batch import OrtBatch
from linmu.runtimes.ort_errors import graph_errors, load_error, ort_errors
from linmu.runtimes.ort_state import OrtState, ort_value
from linmu.specs import GraphSpec, TensorSpec

if TYPE_CHECKING:
    from typing import Self  # Python 3.11

PROVIDER = "CPUExecutionProvider"
EXPOSED = "exposed/"
# Off where inputs are rounded to int8 with one scale: it makes Gemm of a product with a bias, and then ONNX Runtime's
# change of int8 weights to uint8 breaks the graph (its zero points are one scalar, beside a scale for every column).
UNWANTED = ["MatMulAddFusion"]
ORT_TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(bool)": "bool",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
}


class OrtRunner:
    """All graphs of a bundle in ONNX Runtime; see linmu.runtimes.base.Runner.

    Fused bundles decode with the prefill graph on one token (a text token takes the step form's path inside it): one
    session then holds the one copy of the weights that ONNX Runtime has packed for its matrix kernels, which a second
    session would repeat. Plain bundles open both graphs on one mapped, unpacked copy.
    """

    backend = "onnxruntime"
    max_piece_tokens: int | None = None

    def __init__(self, bundle: Bundle, threads: int | None = None):
        self.bundle, self.threads = bundle, threads
        self.state_specs = bundle.manifest.state
        check_contract(bundle.manifest)
        self._decoder, self._weights = open_decoder(bundle.folder, bundle.manifest)
        self._one_graph = bundle.manifest.precision.ops == "fused"
        # numpy has no int4 and no fp8: ONNX Runtime reads packed integers from the file itself
        packed = {part(name, "q") for name in self._decoder.packing}
        floats = () if self._one_graph else self._weights.keys() - packed
        self._shared = {name: ort_value(self._weights[name]) for name in floats}
        self._sessions: dict[str, ort.InferenceSession] = {}
        self._logits = np.zeros((1, 1, bundle.manifest.model.vocab_size), np.float32)
        self.decode_graph = "prefill" if self._one_graph else "step"
        self._inputs = self.decode_inputs(1)
        for name in {"prefill", self.decode_graph}:
            self.session(name)

    def __enter__(self) -> Self:
        """The runner itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Drop sessions and weights."""
        self._sessions.clear()
        self._shared.clear()
        self._weights.clear()

    def new_state(self) -> OrtState:
        """A zero state for one sequence."""
        return OrtState(self.state_specs)

    def new_batch(self, capacity: int) -> OrtBatch | None:
        """A batch of up to `capacity` rows; None where the graph that decodes was written for one sequence."""
        inputs = {spec.name: spec for spec in self.bundle.manifest.graphs[self.decode_graph].inputs}
        takes_many = all(inputs[spec.name].shape[0] == "batch" for spec in self.state_specs)
        return OrtBatch(self, capacity) if takes_many else None

    def embed(self, input_ids: np.ndarray) -> np.ndarray:
        """Token embeddings: [S] int64 -> [S, D] float32; rows of the mapped table."""
        return embedding_rows(self._weights, self._decoder, input_ids)

    def encode(self, call: dict[str, np.ndarray]) -> VisionFeatures:
        """The vision graph on one call; raises BundleError when the bundle has none."""
        vision = self.bundle.manifest.vision
        feeds = {name: value for name, value in call.items() if name != "grid"}
        if "grid" in call:
            grid = tuple(int(n) for n in call["grid"])
            feeds |= vision_inputs(self.bundle.manifest.model.family, vision, (grid[0], grid[1], grid[2]))
        session = self.session("vision")
        if "grid" not in call:  # tiles are independent: a few at a time bound the memory
            tiles, most = feeds["pixel_values"], TILES_AT_ONCE
            with graph_errors("vision"):
                parts = [
                    session.run(["embeddings"], {"pixel_values": tiles[i : i + most]})[0]
                    for i in range(0, len(tiles), most)
                ]
            embeddings = np.concatenate(parts)
            return VisionFeatures(embeddings.reshape(-1, embeddings.shape[-1]))
        with graph_errors("vision"):
            outputs = dict(zip((o.name for o in session.get_outputs()), session.run(None, feeds), strict=True))
        return VisionFeatures(outputs["embeddings"], outputs.get("deepstack"))

    def prefill(self, piece: PromptPiece, state: OrtState) -> np.ndarray:
        """Run a piece of a prompt, updating the state in place -> logits [V] of its last token."""
        names = {spec.name: len(spec.shape) for spec in self.bundle.manifest.graphs["prefill"].inputs}
        positions = piece.position_ids[:, None] if names["position_ids"] == 3 else piece.position_ids
        feeds: dict[str, np.ndarray] = {"inputs_embeds": piece.inputs_embeds, "position_ids": positions, **piece.layout}
        if piece.deepstack is not None:
            feeds["deepstack"] = piece.deepstack
        if "past_length" in names:
            feeds["past_length"] = np.array([piece.past_length], np.int64)
        session = self.session("prefill")
        binding = session.io_binding()
        for name, array in feeds.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        state.bind(binding, state.now)
        logits = np.zeros_like(self._logits)
        binding.bind_ortvalue_output("logits", ort_value(logits))
        options = ort.RunOptions()
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self.run_bound("prefill", binding, options)
        state.now = 1 - state.now
        return logits[0, 0]

    def step(self, token: int, position: int, past_length: int, state: OrtState) -> np.ndarray:
        """One decode step -> logits [V]; the array is overwritten by the next step."""
        if not state.step_bindings:
            state.step_bindings = [self._step_binding(state, source) for source in (0, 1)]
        if self._one_graph:
            self._inputs["inputs_embeds"][0] = self.embed(np.array([token]))
        else:
            self._inputs["input_ids"][...] = token
        self._inputs["position_ids"][...] = position
        if "past_length" in self._inputs:
            self._inputs["past_length"][...] = past_length
        self.run_bound(self.decode_graph, state.step_bindings[state.now])
        state.now = 1 - state.now
        return self._logits[0, 0]

    def run_bound(self, name: str, binding: ort.IOBinding, options: ort.RunOptions | None = None) -> None:
        """Run graph `name` on bound buffers."""
        with graph_errors(name):
            self.session(name).run_with_iobinding(binding, options)

    def run_graph(self, name: str, outputs: list[str], feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Run graph `name` on arrays -> the outputs asked for."""
        with graph_errors(name):
            values: list[np.ndarray] = self.session(name).run(outputs, feeds)
        return values

    def decode_inputs(self, rows: int) -> dict[str, np.ndarray]:
        """Buffers of a decode step's inputs but the state, for `rows` sequences with a text token each."""
        facts = self.bundle.manifest.model
        sizes = {"batch": rows}
        specs = [s for s in self.bundle.manifest.graphs[self.decode_graph].inputs if not s.name.startswith("past.")]
        inputs = {
            s.name: np.zeros([sizes.get(d, 1) if isinstance(d, str) else d for d in s.shape], s.dtype) for s in specs
        }
        if "layout.order" in inputs:
            alone = PromptLayout(1, (), np.zeros((1, 1), np.int64), 1)
            inputs |= layout_tensors(alone, facts.mmate, never_empty=True)
        return inputs

    def _step_binding(self, state: OrtState, source: int) -> ort.IOBinding:
        binding = self.session(self.decode_graph).io_binding()
        for name, array in self._inputs.items():
            binding.bind_ortvalue_input(name, ort_value(array))
        binding.bind_ortvalue_output("logits", ort_value(self._logits))
        state.bind(binding, source)
        return binding

    @property
    def open_graphs(self) -> frozenset[str]:
        """Names of the graphs that are in memory."""
        return frozenset(self._sessions)

    def drop(self, name: str) -> None:
        """Free one graph (it is opened again when it is needed)."""
        del self._sessions[name]

    def session(self, name: str) -> ort.InferenceSession:
        """Open a graph on first use and hold it against the manifest before anything is run."""
        if name not in self._sessions:
            spec = self.bundle.manifest.graphs.get(name)
            if spec is None:
                raise BundleError(f"the bundle has no {name} graph", got=", ".join(self.bundle.manifest.graphs))
            self._sessions[name] = self._open(name, spec)
        return self._sessions[name]

    def _options(self, name: str) -> ort.SessionOptions:
        """What sessions of this bundle are opened with."""
        options = ort.SessionOptions()
        options.log_severity_level = 3
        precision = self.bundle.manifest.precision
        if precision.static_fp8:  # it would make integer products of them, which it has for int8 only, and then refuse
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        if precision.static_int8:  # without VNNI its kernel saturates sums of pairs: another function
            options.add_session_config_entry("session.x64quantprecision", "1")
        # by default int4 matrices behind DequantizeLinear are multiplied with inputs rounded to int8: another function
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        # Arm's own kernels round inputs by row, not by block: another function than the reference's
        options.add_session_config_entry("mlas.disable_kleidiai", "1")
        if self.threads is not None:
            options.intra_op_num_threads = self.threads
        if self._shared and name != "vision":
            # packed copies of the weights would be private to each session: keep the one mapped copy instead
            options.add_session_config_entry("session.disable_prepacking", "1")
            for weight, value in self._shared.items():
                options.add_initializer(weight, value)
        return options

    def _source(self, path: Path, options: ort.SessionOptions) -> str | bytes:
        """What ONNX Runtime opens for a graph file."""
        return str(path)

    def _open(self, name: str, spec: GraphSpec) -> ort.InferenceSession:
        places = {} if name == "vision" else self._decoder.places
        check_graph_file(self.bundle.folder, spec.file, self.bundle.manifest, places)
        options, path = self._options(name), self.bundle.folder / spec.file
        unwanted = UNWANTED if self.bundle.manifest.precision.static_int8 else []
        try:
            session = ort.InferenceSession(
                self._source(path, options), options, providers=[PROVIDER], disabled_optimizers=unwanted
            )
        except ort_errors() as error:
            raise load_error(path, self.bundle.manifest.precision, error) from error
        # what verification adds to a graph's outputs (linmu.proof.exposed) stands behind those of the bundle
        outputs = [value for value in session.get_outputs() if not value.name.startswith(EXPOSED)]
        check_graph_io(spec, _specs(session.get_inputs()), _specs(outputs))
        return session


def _specs(values: list[Any]) -> list[TensorSpec]:
    return [TensorSpec(v.name, ORT_TYPES.get(v.type, v.type), tuple(v.shape)) for v in values]


def open_ort(bundle: Bundle, threads: int | None) -> OrtRunner:
    """Open the ONNX Runtime runner."""
    return OrtRunner(bundle, threads)
