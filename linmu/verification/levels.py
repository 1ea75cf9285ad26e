"""The levels that need golden vectors only: graphs, roll-out, greedy tokens, prompts. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

import numpy as np

from linmu.errors import BundleError, LinmuError
from linmu.formats.bundle import Bundle, check_graph_io
from linmu.runtimes.base import Runner
from linmu.runtimes.block_kernels import rounds_by_block
from linmu.runtimes.session import Session
from linmu.specs import TensorSpec
from linmu.verification.compare import (
    Meter,
    Tolerance,
    Worst,
    array_error,
    group_scale,
    logits_error,
    snapshot_error,
)
from linmu.verification.golden import Golden, Projector, Snapshot
from linmu.verification.players import Player, RunnerPlayer, SessionPlayer
from linmu.verification.report import Check, Curve, metered
from linmu.verification.synthetic import golden_piece, inputs_of, vision_call

PRINT_TOLERANCE = 1e-5  # of the pixels' norm: preprocessing is the same numpy and Pillow code everywhere
NOTHING_SURE = "nothing was compared: so many inputs are rounded that each step has ties; --student proves such steps"
NO_KERNEL = (
    "ONNX Runtime has no such kernel for this CPU (x86 needs AVX2): it multiplies inputs that are not rounded, more "
    "exactly than the reference. Verify on another CPU, or use a bundle of --quant none or fp16"
)
POSITIONS = {"prefill": "prefill", "text": "prefill, text only"}  # what the two prefill vectors are called
PROJECTED_ROOM = 4.0  # a projection of V differences, each at the tolerance, reaches 4 sqrt(V) of them almost never


@lru_cache(maxsize=1)
def run_errors() -> tuple[type[Exception], ...]:
    """What a broken graph or bundle can raise while it runs."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    raised = [item for item in vars(state).values() if isinstance(item, type) and issubclass(item, Exception)]
    ordinary = (LinmuError, ArithmeticError, AssertionError, LookupError, OSError, RuntimeError, TypeError, ValueError)
    return (*ordinary, *raised)


def guarded(level: str, backend: str, name: str, check: Callable[[], Check]) -> Check:
    """The check, or a failed one that says what was raised: the levels after it still run."""
    try:
        return check()
    except run_errors() as error:
        lines = str(error).strip().splitlines() or [""]
        return Check(level, backend, name, False, note=f"{type(error).__name__}: {lines[0][:300]}")


def kernel_checks(bundle: Bundle, golden: Golden | None) -> list[Check]:
    """Whether ONNX Runtime rounds inputs by block on this CPU, where a bundle that is held to that asks for it.

    None where inputs are not rounded, nor for golden vectors without rounding: they are what such a CPU computes.
    """
    if not bundle.manifest.precision.rounds_by_block or (golden and golden.float_inputs):
        return []
    rounds = rounds_by_block()
    return [Check("contract", "onnxruntime", "kernels round by block", rounds, note="" if rounds else NO_KERNEL)]


def graph_io_check(runner: Any, bundle: Bundle, name: str) -> Check:
    """An ONNX graph's own inputs and outputs against the manifest: names, dtypes, shapes and order."""
    spec = bundle.manifest.graphs[name]
    session = runner.session(name)  # the runner's own: a second one would load the weights again
    actual = [_specs(values) for values in (session.get_inputs(), session.get_outputs())]
    check_graph_io(spec, *actual)
    for side, wanted, got in zip(("inputs", "outputs"), (spec.inputs, spec.outputs), actual, strict=True):
        names, expected = [item.name for item in got], [item.name for item in wanted]
        if names != expected:
            place = next(i for i, pair in enumerate(zip(names, expected, strict=True)) if pair[0] != pair[1])
            raise BundleError(
                f"{spec.file}: order of its {side}", got=f"{names[place]} at place {place}", expected=expected[place]
            )
    return Check("contract", runner.backend, spec.file, True)


def _specs(values: Iterable[Any]) -> list[TensorSpec]:
    from linmu.runtimes.ort_runner import ORT_TYPES

    return [TensorSpec(v.name, ORT_TYPES.get(v.type, v.type), tuple(v.shape)) for v in values]


class GoldenLevels:
    """One backend against the golden vectors; each method is one check."""

    def __init__(self, bundle: Bundle, golden: Golden, runner: Runner, tolerance: Tolerance, label: str = ""):
        self.bundle, self.manifest, self.golden = bundle, bundle.manifest, golden
        self.runner, self.tolerance, self.projector = runner, tolerance, Projector()
        self.label = f"{runner.backend} {label}".rstrip()  # of the curves
        self.curves: list[Curve] = []

    def embedding(self, name: str = "token_embedding") -> Check:
        """Golden ids through token_embedding: exactly the table's rows."""
        ids, wanted = (self.golden.graphs[f"token_embedding/{name}"] for name in ("input_ids", "inputs_embeds"))
        meter = Meter()
        meter.add(logits_error(self.runner.embed(ids), wanted, self.tolerance, name="inputs_embeds"))
        return metered("graph", self.runner.backend, name, meter)

    def vision(self) -> Check:
        """The vision graph on seeded pixels."""
        features, meter = self.runner.encode(vision_call(self.manifest.vision)), Meter()
        tolerance = self.tolerance.widened(self.golden.graphs.get("vision/noise", (0.0, 0.0)))
        for name, array in (("embeddings", features.embeddings), ("deepstack", features.deepstack)):
            wanted = self.golden.graphs.get(f"vision/{name}")
            if wanted is not None:
                array = np.zeros(0, np.float32) if array is None else array
                meter.add(logits_error(array, wanted, tolerance, name=name))
        return metered("graph", self.runner.backend, "vision", meter)

    def prefill(self, name: str) -> Check:
        """Prefill on golden embeddings: logits and all states ("prefill": with pictures, "text": without)."""
        player, logits = self._prefilled(name)
        meter = self._compared(name, logits, player)
        return metered("graph", self.runner.backend, POSITIONS[name], meter)

    def positions(self, name: str) -> Check:
        """Hidden states of every position of a prefill vector; the runner shows them (linmu.verification.hidden)."""
        vectors, meter = self.golden.graphs, Meter()
        self._prefilled(name)
        tolerance = self.tolerance.widened(vectors[f"{name}/hidden/noise"]).logits
        wanted, scale = vectors[f"{name}/hidden/projection"], group_scale(vectors[f"{name}/hidden/norm"])[:, None]
        hidden = self.runner.hidden[0]  # type: ignore[attr-defined]
        if np.isfinite(hidden).all():
            hidden, _ = self.projector.rows(hidden)
        meter.add(array_error(hidden, wanted, scale, "hidden states (projected)", tolerance))
        return metered("graph", self.runner.backend, f"{POSITIONS[name]}, every position", meter)

    def step(self, name: str = "step") -> Check:
        """One step from the golden state (from the runner's own where the golden one is not stored in full)."""
        full = self.golden.snapshot(self.golden.start).full
        player, _ = self._prefilled(self.golden.start)
        if full:
            player.place(dict(full), player.position, player.tokens)
        meter = self._compared("step", player.step(int(self.golden.graphs["step/input_ids"][0])), player)
        return metered("graph", self.runner.backend, name, meter)

    def rollout(self, steps: int, prefix: str = "") -> Check:
        """Teacher-forced steps behind the golden prefill: logits and every state of every step."""
        rows, meter = self.golden.rollout, Meter()
        total = len(rows["steps/tokens"])
        if total == 0:
            return Check("rollout", self.runner.backend, f"{prefix}0 steps", True, note=NOTHING_SURE)
        player, logits = self._prefilled(self.golden.start)
        steps = min(steps, total)
        for step in range(steps):
            logits = player.step(int(rows["steps/tokens"][step]))
            self._step_logits(meter, logits, step)
            self._step_states(meter, player.state(), step)
        if steps == total:
            tolerance = self.tolerance.widened(rows["steps/noise"][-1])
            meter.add(logits_error(logits, rows["end/logits"], tolerance, steps - 1), "logits")
            snapshot_error(meter, player.state(), self.golden.snapshot("end"), self.projector, tolerance, steps - 1)
        self._draw("rollout", meter)
        return metered("rollout", self.runner.backend, f"{prefix}{steps} steps", meter)

    def greedy(self, prompt: dict[str, Any]) -> Check:
        """Free-running greedy tokens through a Session, and the prompt's ids and pixels on the way."""
        session = Session(self.bundle, self.runner)
        images = [self.bundle.path(name) for name in prompt["images"]]
        meter, tokens = Meter(), prompt["token_ids"]
        player = SessionPlayer(session, prompt["prompt"], images)
        note = greedy_note(meter, player, tokens, prompt["gaps"], prompt["noise"], self.tolerance)
        return metered("greedy", self.runner.backend, f"{prompt['name']}, {len(tokens)} tokens", meter, note)

    def preprocessing(self, prompt: dict[str, Any]) -> Check:
        """Token ids and pixels that the bundle's processor makes of a golden prompt."""
        session, meter = Session(self.bundle, self.runner), Meter()
        inputs = session.prepare(prompt["prompt"], [self.bundle.path(name) for name in prompt["images"]])
        same = inputs.input_ids.tolist() == prompt["input_ids"]
        note = "" if same else f"token ids differ: {len(inputs.input_ids)} instead of {len(prompt['input_ids'])}"
        meter.add(Worst(0.0 if same else np.inf, PRINT_TOLERANCE, "input_ids", None, note))
        if len(inputs.vision_calls) != len(prompt["pixels"]):
            note = f"{len(inputs.vision_calls)} vision calls instead of {len(prompt['pixels'])}"
            meter.add(Worst(np.inf, PRINT_TOLERANCE, "pixel_values", None, note))
        for number, (call, wanted) in enumerate(zip(inputs.vision_calls, prompt["pixels"], strict=False)):
            meter.add(self._pixels(call["pixel_values"], wanted, f"pixel_values of call {number}"))
        return metered("prompt", self.runner.backend, f"{prompt['name']}: ids and pixels", meter)

    def answer(self, prompt: dict[str, Any]) -> Check:
        """The answer's text through Session.generate; a tie shown by the greedy level excuses it from there on."""
        session = Session(self.bundle, self.runner)
        images = [self.bundle.path(name) for name in prompt["images"]]
        answer = session.generate(prompt["prompt"], images, max_new_tokens=prompt["max_new_tokens"])
        pairs = enumerate(zip(answer.token_ids, prompt["token_ids"], strict=False))
        different = next((step for step, (got, wanted) in pairs if got != wanted), None)
        if different is None:
            same = answer.text == prompt["text"] and len(answer.token_ids) == len(prompt["token_ids"])
            note = "" if same else f"got {answer.text!r:.80} instead of {prompt['text']!r:.80}"
            return Check("prompt", self.runner.backend, f"{prompt['name']}: text", same, note=note)
        limit = self.tolerance.widened((prompt["noise"][different], 0.0)).logits
        tie = prompt["gaps"][different] <= 2 * limit
        note = f"token {different} differs" + (", a tie of the reference" if tie else f": {answer.text!r:.80}")
        return Check("prompt", self.runner.backend, f"{prompt['name']}: text", tie, note=note)

    def _prefilled(self, name: str) -> tuple[RunnerPlayer, np.ndarray]:
        vectors = self.golden.graphs
        inputs = inputs_of(vectors[f"{name}/input_ids"], vectors[f"{name}/grids"])
        piece, placed = golden_piece(inputs, self.manifest, vectors[f"{name}/inputs_embeds"], name)
        player = RunnerPlayer(self.runner, self.manifest)
        return player, player.prefill(piece, placed.next_position)

    def _compared(self, name: str, logits: np.ndarray, player: RunnerPlayer) -> Meter:
        """Logits and states of one call against golden vector `name`."""
        meter, tolerance = Meter(), self.tolerance.widened(self.golden.graphs[f"{name}/noise"])
        meter.add(logits_error(logits, self.golden.graphs[f"{name}/logits"], tolerance), "logits")
        snapshot_error(meter, player.state(), self.golden.snapshot(name), self.projector, tolerance)
        return meter

    def _step_logits(self, meter: Meter, logits: np.ndarray, step: int) -> None:
        rows = self.golden.rollout
        tolerance = self.tolerance.widened(rows["steps/noise"][step]).logits
        std = float(rows["steps/std"][step])
        if not np.isfinite(logits).all():
            meter.add(array_error(logits, np.zeros_like(logits), 1.0, "logits", tolerance, step), "logits")
            return
        kept = logits[rows["steps/ids"]]
        meter.add(array_error(kept, rows["steps/logits"][step], std, "logits", tolerance, step), "logits")
        projections, _ = self.projector.rows(logits[None])
        scale = PROJECTED_ROOM * std * len(logits) ** 0.5
        wanted = rows["steps/logits_projection"][step]
        meter.add(array_error(projections[0], wanted, scale, "logits (projected)", tolerance, step), "logits")
        best, wanted_best = int(logits.argmax()), int(rows["steps/best"][step])
        if best != wanted_best and float(rows["steps/gap"][step]) > 2 * tolerance:
            note = f"most likely token {best} instead of {wanted_best}"
            meter.add(Worst(np.inf, tolerance, "logits", step, note), "logits")

    def _step_states(self, meter: Meter, state: dict[str, np.ndarray], step: int) -> None:
        rows = self.golden.rollout
        parts = {kind: {name: rows[f"steps/{kind}/{name}"][step] for name in state} for kind in ("projection", "norm")}
        wanted = Snapshot(parts["projection"], parts["norm"], {})
        snapshot_error(meter, state, wanted, self.projector, self.tolerance.widened(rows["steps/noise"][step]), step)

    def _pixels(self, pixels: np.ndarray, wanted: dict[str, Any], name: str) -> Worst:
        if list(pixels.shape) != wanted["shape"]:
            note = f"shape {list(pixels.shape)} instead of {wanted['shape']}"
            return Worst(np.inf, PRINT_TOLERANCE, name, None, note)
        projections, _ = self.projector.rows(pixels.reshape(1, -1))
        return array_error(projections[0], np.array(wanted["projection"]), wanted["norm"], name, PRINT_TOLERANCE)

    def _draw(self, level: str, meter: Meter) -> None:
        for kind, tolerance in (("logits", self.tolerance.logits), ("states", self.tolerance.state)):
            if kind in meter.curves:
                self.curves.append(Curve(level, self.label, kind, tolerance, meter.curves[kind]))


def greedy_note(
    meter: Meter, player: Player, tokens: list[int], gaps: list[float], noise: list[float], tolerance: Tolerance
) -> str:
    """Let a player run freely beside the reference's greedy tokens; fills `meter`, returns what is worth a note.

    Both see the same tokens until they diverge. A divergence is a tie when the reference's two best logits are closer
    than twice the logit tolerance (each may move by it): then it goes on with the reference's token. All else fails.
    """
    logits, ties = player.start(), []
    for step, wanted in enumerate(tokens):
        token = int(logits.argmax())
        tie = gaps[step] <= 2 * tolerance.widened((noise[step], 0.0)).logits
        if not np.isfinite(logits).all():
            meter.add(Worst(np.inf, tolerance.logits, "logits", step, "not finite"))
            return "logits are not finite"
        if token != wanted and not tie:
            meter.add(Worst(np.inf, tolerance.logits, "tokens", step, f"token {token} instead of {wanted}"))
            lead = f"lead is {gaps[step]:.1e} std, its noise {noise[step]:.1e}"
            return f"diverges at token {step} (the reference's {lead})"
        if token != wanted:
            ties.append(step)
        meter.add(Worst(0.0, tolerance.logits, "tokens", step))
        if step + 1 < len(tokens):
            logits = player.step(wanted)
    return f"tie of the reference at token {', '.join(map(str, ties))}: went on teacher-forced" if ties else ""
