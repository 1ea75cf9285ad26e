"""TensorRT: engines made by `linmu build`, states on the device, a decode step as one CUDA graph.

Embeddings are looked up on the host, in the mapped table. Prefill and step are engines of their own, each with its
copy of the weights; an engine is opened when it is first used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from linmu.errors import BundleError, DeviceError, LinmuError, MissingComponentError
from linmu.formats.bundle import ENGINES, Bundle
from linmu.formats.decoder_file import open_decoder
from linmu.layout.vision_grid import vision_inputs
from linmu.runtimes.base import PromptPiece, VisionFeatures
from linmu.runtimes.shape_ranges import COMPILED
from linmu.runtimes.tensorrt import cuda as cuda_runtime
from linmu.runtimes.tensorrt.cuda import Cuda
from linmu.runtimes.tensorrt.device_state import DeviceSets, DeviceState
from linmu.runtimes.tensorrt.engine import OpenEngine
from linmu.runtimes.tensorrt.engine_files import Engine, engine_parts, engine_problem, read_index
from linmu.runtimes.tensorrt.residency import Residency
from linmu.runtimes.tensorrt.toolkit import Toolkit, load_toolkit

NEEDED_FOR = "backend tensorrt"
TABLE = "token_embedding"


class TrtRunner:
    """All graphs of a bundle in TensorRT; see linmu.runtimes.base.Runner."""

    backend = "tensorrt"

    def __init__(self, bundle: Bundle, toolkit: Toolkit, engines: dict[str, Engine]):
        self.bundle, self.toolkit, self._files = bundle, toolkit, engines
        self.state_specs = bundle.manifest.state
        _, weights = open_decoder(bundle.folder, bundle.manifest)
        if TABLE not in weights:
            raise BundleError(f"decoder.json has no weight {TABLE!r}", fix="export the bundle again")
        self._table = weights[TABLE]
        self.cuda = Cuda()
        try:
            self._sets = DeviceSets(self.cuda, self.state_specs)
        except BaseException:
            self.cuda.close()
            raise
        self._residency = Residency(self._sets)
        self._open: dict[str, OpenEngine] = {}
        self._contexts: dict[str, Any] = {}
        self._step: DecodeStep | None = None

    def __enter__(self) -> TrtRunner:
        """The runner itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Free graphs, contexts, engines and memory, in this order."""
        self._step = None
        self._contexts.clear()
        self._open.clear()
        self.cuda.close()

    @property
    def max_piece_tokens(self) -> int | None:
        """Tokens of the longest call that the prefill engine was built for."""
        return longest_prefill(self._files)

    def new_state(self) -> DeviceState:
        """A zero state for one sequence."""
        return DeviceState(self._sets, self._residency)

    def embed(self, input_ids: np.ndarray) -> np.ndarray:
        """Token embeddings: [S] int64 -> [S, D] float32; rows of the mapped table."""
        return np.asarray(self._table[input_ids], np.float32)

    def encode(self, call: dict[str, np.ndarray]) -> VisionFeatures:
        """The vision graph on one call; raises BundleError when the bundle has none, InputError for a large picture."""
        vision = self.bundle.manifest.vision
        feeds = {name: value for name, value in call.items() if name != "grid"}
        engine, context = self._engine("vision"), self._context("vision")
        if "grid" in call:
            grid = tuple(int(size) for size in call["grid"])
            feeds |= vision_inputs(self.bundle.manifest.model.family, vision, (grid[0], grid[1], grid[2]))
            outputs = engine.run(context, feeds)
            deepstack = outputs.get("deepstack")
            return VisionFeatures(_float32(outputs["embeddings"]), None if deepstack is None else _float32(deepstack))
        tiles, most = feeds["pixel_values"], engine.largest("pixel_values", 0)
        parts = [
            engine.run(context, {"pixel_values": tiles[low : low + most]})["embeddings"]
            for low in range(0, len(tiles), most)
        ]
        embeddings = _float32(np.concatenate(parts))
        return VisionFeatures(embeddings.reshape(-1, embeddings.shape[-1]))

    def prefill(self, piece: PromptPiece, state: DeviceState) -> np.ndarray:
        """Run a piece of a prompt, updating the state in place -> logits [V] float32 of its last token.

        Raises InputError for a piece outside the ranges that the engine was built for.
        """
        engine, context = self._engine("prefill"), self._context("prefill")
        feeds = prefill_feeds(piece, engine)
        source = self._residency.enter(state.ticket)
        engine.set_addresses(context, self._sets.addresses(source))
        logits = engine.run(context, feeds)["logits"]
        self._residency.swap()
        return _float32(logits)[0, 0]

    def step(self, token: int, position: int, past_length: int, state: DeviceState) -> np.ndarray:
        """One decode step -> logits [V] float32; the array may be overwritten by the next step."""
        if self._step is None:
            self._step = DecodeStep(self._engine("step"), self._sets)
        source = self._residency.enter(state.ticket)
        logits = self._step.run(source, token, position, past_length, self._table)
        self._residency.swap()
        return logits

    def _engine(self, graph: str) -> OpenEngine:
        if graph not in self._open:
            if graph not in self._files:
                raise BundleError(f"the bundle has no {graph} graph", got=", ".join(self.bundle.manifest.graphs))
            file = self._files[graph]
            path = self.bundle.folder / ENGINES / file.file
            spec = self.bundle.manifest.graphs[graph]
            self._open[graph] = OpenEngine(self.toolkit, self.cuda, graph, path, spec, file.ranges)
        return self._open[graph]

    def _context(self, graph: str) -> Any:
        if graph not in self._contexts:
            engine = self._engine(graph)
            self._contexts[graph] = engine.context()
            if graph == "prefill":
                engine.set_shapes(self._contexts[graph], self._sets.shapes)
        return self._contexts[graph]


class DecodeStep:
    """The step engine, captured once for each direction of the two working sets.

    Each direction has an execution context of its own: a captured graph belongs to the addresses of its context.
    """

    def __init__(self, engine: OpenEngine, sets: DeviceSets):
        self.engine, self.sets = engine, sets
        self.shapes = {
            item.name: tuple(1 if isinstance(dim, str) else dim for dim in item.shape) for item in engine.spec.inputs
        }
        self.logits = next(item for item in engine.spec.outputs if item.name == "logits")
        self.logits_shape = tuple(1 if isinstance(dim, str) else dim for dim in self.logits.shape)
        self._contexts: dict[int, Any] = {}
        self._captured: dict[int, Any] = {}  # None: this engine cannot be captured and is queued each time

    def run(self, source: int, token: int, position: int, past_length: int, table: np.ndarray) -> np.ndarray:
        """Read state set `source`, write the other one -> logits [V] float32."""
        for name, shape in self.shapes.items():
            view = self.engine.view(name, shape)
            if name == "inputs_embeds":
                view[0, 0] = table[token]
            else:
                view[...] = {"input_ids": token, "position_ids": position, "past_length": past_length}[name]
        if source not in self._captured:
            self._prepare(source)
        elif self._captured[source] is None:
            self._queue(source)
        else:
            self.engine.cuda.launch(self._captured[source])
        self.engine.cuda.wait()
        return _float32(self.engine.view("logits", self.logits_shape))[0, 0]

    def _prepare(self, source: int) -> None:
        """Bind, run once outside of a capture (TensorRT may still set things up), and capture for the next time."""
        context = self._contexts[source] = self.engine.context()
        self.engine.set_shapes(context, self.shapes | self.sets.shapes)
        self.engine.set_addresses(context, self.sets.addresses(source))
        self.engine.check_states(context)
        self._queue(source)
        self.engine.cuda.wait()
        try:
            self._captured[source] = self.engine.cuda.capture(lambda: self._queue(source))
        except DeviceError:
            self._captured[source] = None

    def _queue(self, source: int) -> None:
        self.engine.queue_inputs(self.shapes)
        self.engine.queue_run(self._contexts[source])
        self.engine.queue_output("logits", self.logits_shape)


def prefill_feeds(piece: PromptPiece, engine: OpenEngine) -> dict[str, np.ndarray]:
    """A piece as the inputs of the prefill engine."""
    ranks = {item.name: len(item.shape) for item in engine.spec.inputs}
    positions = piece.position_ids[:, None] if ranks["position_ids"] == 3 else piece.position_ids
    feeds: dict[str, np.ndarray] = {"inputs_embeds": piece.inputs_embeds, "position_ids": positions, **piece.layout}
    if piece.deepstack is not None:
        feeds["deepstack"] = piece.deepstack
    if "past_length" in ranks:
        feeds["past_length"] = np.array([piece.past_length], np.int64)
    return feeds


def longest_prefill(engines: Mapping[str, Engine]) -> int | None:
    """Tokens of the longest call that the prefill engine takes; None where there is no such engine."""
    tokens = engines["prefill"].ranges.get("tokens") if "prefill" in engines else None
    return tokens.max if tokens else None


def find_engines(bundle: Bundle, toolkit: Toolkit, gpu: str, capability: str) -> dict[str, Engine]:
    """The engines of all graphs for this GPU; raises MissingComponentError naming the first that cannot be used."""
    index = read_index(bundle.folder)
    engines = {}
    for graph in COMPILED:
        if graph not in bundle.manifest.graphs:
            continue
        engine = index.get(graph)
        ranges, level = (engine.ranges, engine.parts.level) if engine else ({}, None)
        wanted = engine_parts(
            bundle,
            graph,
            ranges,
            flavour=toolkit.flavour,
            version=toolkit.version,
            gpu=gpu,
            capability=capability,
            level=level,
        )
        problem = engine_problem(bundle.folder, engine, wanted)
        if problem is not None or engine is None:
            raise MissingComponentError(
                f"the {graph} engine (it {problem})", needed_for=NEEDED_FOR, fix=f"linmu build {bundle.folder}"
            )
        engines[graph] = engine
    return engines


def unusable(bundle: Bundle) -> str | None:
    """Why this backend cannot run the bundle here, in a line, or None."""
    try:
        _ready(bundle)
    except LinmuError as error:
        return f"{error.what}; {error.fix}" if error.fix else error.what
    return None


def _ready(bundle: Bundle) -> tuple[Toolkit, dict[str, Engine]]:
    toolkit = load_toolkit(needed_for=NEEDED_FOR)
    facts = cuda_runtime.gpu_facts(NEEDED_FOR)
    return toolkit, find_engines(bundle, toolkit, facts.name, facts.capability_text)


def _float32(array: np.ndarray) -> np.ndarray:
    return np.asarray(array, np.float32)


def open_trt(bundle: Bundle, threads: int | None) -> TrtRunner:
    """Open the TensorRT runner; `threads` is not used.

    Raises MissingComponentError when TensorRT, cuda-python, a GPU or an engine for it is missing.
    """
    return TrtRunner(bundle, *_ready(bundle))
