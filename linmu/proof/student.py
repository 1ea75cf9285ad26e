"""The levels that need the student (torch, transformers): the whole way in lockstep, and the bisect."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from linmu.formats.bundle import Bundle
from linmu.formats.manifest import Manifest
from linmu.model.hf_inputs import hf_inputs
from linmu.processing import ModelInputs
from linmu.proof.rounded import rounded_checks
from linmu.proof.student_reference import Reference, open_reference
from linmu.runtimes.backends import BACKENDS, named
from linmu.runtimes.base import Runner
from linmu.runtimes.session import Session
from linmu.verification.compare import (
    Meter,
    Tolerance,
    Worst,
    logits_error,
    logits_noise,
    noise_between,
    states_error,
    top_gap,
)
from linmu.verification.golden import forced_ids, forced_token
from linmu.verification.hidden import hidden_runner, hidden_states, whole_prompt
from linmu.verification.levels import greedy_note, guarded, run_errors
from linmu.verification.players import Player, RunnerPlayer, SessionPlayer
from linmu.verification.report import Check, Curve, metered

EVERY = "every position of the prompt"
KINDS = ("conv", "recurrent", "key", "value")


class StudentPlayer:
    """The student itself, as transformers runs it."""

    name = "student"

    def __init__(self, student: PreTrainedModel, inputs: ModelInputs):
        self.student, self.inputs = student, inputs

    @torch.no_grad()
    def start(self) -> np.ndarray:
        """One forward pass over the prompt, pixels included."""
        return self._take(self.student(**hf_inputs(self.inputs, self.student._prompt_rules), use_cache=True))

    @torch.no_grad()
    def step(self, token: int) -> np.ndarray:
        """One more token with the cache."""
        ids = torch.tensor([[token]])
        return self._take(self.student(input_ids=ids, past_key_values=self.cache, use_cache=True))

    def state(self) -> dict[str, np.ndarray]:
        """All states; the student keeps them in canonical axis order."""
        return {
            f"past.{index}.{kind}": layer.state[kind].float().numpy()
            for index, layer in enumerate(self.cache.layers)
            for kind in KINDS
            if kind in layer.state
        }

    def _take(self, output) -> np.ndarray:
        self.cache = output.past_key_values
        return output.logits[0, -1].float().numpy()


@dataclass
class Stage:
    """One player with its errors against the stage before it and against the student."""

    player: Player
    previous: Meter = field(default_factory=Meter)
    reference: Meter = field(default_factory=Meter)
    note: str = ""


def student_checks(
    bundle: Bundle,
    folder: Path,
    runners: Sequence[Runner],
    tolerance: Tolerance,
    steps: int,
    calibration: Path | None = None,
) -> tuple[list[Check], list[Curve], str | None]:
    """Every runner against the student: checks, curves, and the first stage that differs (None if all agree)."""
    checks: list[Check] = []
    curves: list[Curve] = []
    culprit: str | None = None
    with tempfile.TemporaryDirectory() as scratch, one_thread():
        reference = open_reference(bundle, folder, Path(scratch), calibration)
        for runner in runners:
            name = runner.backend
            if reference.runner.rounds:
                found, drawn = rounded_checks(bundle, reference, runner, tolerance, steps)
                vision = _vision_check(reference, runner, tolerance)
                found += [] if vision is None else [vision]
                checks, curves = checks + found, curves + drawn
                culprit = culprit or next((f"{check.name} [{name}]" for check in found if not check.ok), None)
                continue
            stages = _stages(bundle, reference, runner)
            noise = run_lockstep(stages, bundle.manifest, reference, tolerance, steps)
            last = stages[-1]
            checks.append(metered("student", name, f"prompt and {steps} steps", last.reference, last.note))
            curves += _curves(name, last.reference, tolerance)
            greedy = partial(_greedy, bundle, reference, runner, tolerance, noise)
            checks.append(guarded("student", name, "greedy", greedy))
            vision = _vision_check(reference, runner, tolerance)
            every = guarded("student", name, EVERY, partial(_positions, bundle, reference, runner, tolerance))
            found = [*([] if vision is None else [vision]), *_bisect(stages, name), every]
            checks += found
            culprit = culprit or _culprit(found, stages)
    return checks, curves, culprit


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch in one thread: its pool and the spinning one of a runtime would fight for the same cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _stages(bundle: Bundle, reference: Reference, runner: Runner) -> list[Stage]:
    manifest = bundle.manifest
    step_form = RunnerPlayer(reference.runner, manifest, reference.inputs, "step form")
    players: list[Player] = [step_form]
    if not reference.runner.lossy:
        players.insert(0, _first_player(reference, manifest))
    if (files := named(BACKENDS[runner.backend].graph_files)) is not None:
        players.append(RunnerPlayer(files(runner), manifest, reference.inputs, f"graph files [{runner.backend}]"))
    players += [
        RunnerPlayer(runner, manifest, reference.inputs),
        SessionPlayer(Session(bundle, runner), reference.prompt, reference.images),
    ]
    return [Stage(player) for player in players]


def _first_player(reference: Reference, manifest: Manifest) -> Player:
    """What all stages are held against: the student, or its step form where the bundle computes in less than float32.

    Such a bundle is another function than the student; how much that costs is told by the answers (`linmu eval`).
    """
    if reference.runner.lossy:
        return RunnerPlayer(reference.runner, manifest, reference.inputs, "step form")
    return StudentPlayer(reference.student, reference.inputs)


def run_lockstep(
    stages: Sequence[Stage], manifest: Manifest, reference: Reference, base: Tolerance, steps: int
) -> list[float]:
    """All stages read the prompt and take the same tokens; every logit and state element is compared at every step.

    Step 0 is the prompt. A stage that raises fails and is left out from there on; the first stage must not.
    Returns the largest noise of logits so far, by step.
    """
    rules = reference.student._prompt_rules
    media = [i for i in (rules.image_token_id, rules.video_token_id) if i is not None] if rules else []
    vocab = reference.runner.form.vocab
    random = forced_ids(vocab, steps + 1, media)
    alive, token, noise = list(stages), -1, np.zeros(2)
    course: list[float] = []
    pair = [RunnerPlayer(runner, manifest, reference.inputs) for runner in (reference.runner, reference.twin)]
    for step in range(steps + 1):
        made = [player.start() if step == 0 else player.step(token) for player in pair]
        found = noise_between(made[0], pair[0].state(), made[1], pair[1].state(), reference.runner.quantum)
        noise = np.maximum(noise, found)
        course.append(float(noise[0]))
        tolerance = base.widened(noise)
        results: list[tuple[Stage, np.ndarray, dict[str, np.ndarray]]] = []
        for stage in list(alive):
            try:
                logits = stage.player.start() if step == 0 else stage.player.step(token)
                results.append((stage, logits.copy(), stage.player.state()))
            except run_errors() as error:
                if stage is stages[0]:
                    raise
                alive.remove(stage)
                stage.note = f"{type(error).__name__} at step {step}: {' '.join(str(error).split())[:300]}"
                for meter in (stage.previous, stage.reference):
                    meter.add(Worst(np.inf, tolerance.logits, "raised an error", step))
        for number, (stage, logits, state) in enumerate(results[1:], 1):
            for meter, other in ((stage.previous, results[number - 1]), (stage.reference, results[0])):
                meter.add(logits_error(logits, other[1], tolerance, step), "logits")
                states_error(meter, state, other[2], tolerance, step)
        token = forced_token(step, int(results[0][1].argmax()), random)
    return course


def _bisect(stages: Sequence[Stage], backend: str) -> list[Check]:
    pairs = zip(stages, stages[1:], strict=False)
    return [
        metered("bisect", backend, f"{before.player.name} -> {stage.player.name}", stage.previous, stage.note)
        for before, stage in pairs
    ]


def _culprit(checks: Sequence[Check], stages: Sequence[Stage]) -> str | None:
    """The first check that fails; if each single stage is within tolerance but the sum is not, say where it crosses."""
    failed = next((check.name for check in checks if not check.ok), None)
    if failed is not None:
        return failed
    crossed = next((stage.player.name for stage in stages[1:] if not stage.reference.ok), None)
    return f"{crossed} (differences of several stages add up)" if crossed else None


def _vision_check(reference: Reference, runner: Runner, tolerance: Tolerance) -> Check | None:
    """The vision graph on the prompt's own pixels against the student's tower."""
    if not reference.inputs.vision_calls:
        return None

    def check() -> Check:
        meter = Meter()
        for number, call in enumerate(reference.inputs.vision_calls):
            wanted, found = reference.runner.encode(call), runner.encode(call)
            for name in ("embeddings", "deepstack"):
                want, have = getattr(wanted, name), getattr(found, name)
                if want is not None:
                    have = np.zeros(0, np.float32) if have is None else have
                    limit = tolerance
                    if quantum := reference.runner.vision_quantum:
                        twin = getattr(reference.twin.encode(call), name)
                        limit = tolerance.widened((logits_noise(want, twin, quantum), 0.0))
                    meter.add(logits_error(have, want, limit, name=f"{name} of call {number}"))
        return metered("bisect", runner.backend, "student's tower -> vision graph", meter)

    return guarded("bisect", runner.backend, "student's tower -> vision graph", check)


@torch.no_grad()
def _positions(bundle: Bundle, reference: Reference, runner: Runner, tolerance: Tolerance) -> Check:
    """Hidden states of every position of the prompt: the step form's against the student's, the backend's against both.

    Logits of the last token and states hardly show what becomes of vision tokens in the last layers. The backend gets
    the step form's own vision features: what towers differ by would hide more than the decoder's own noise does.
    """
    manifest, meter, runners = bundle.manifest, Meter(), (reference.runner, reference.twin)
    quantum = reference.runner.quantum
    own, moved = (whole_prompt(one, reference.inputs, manifest) for one in runners)
    eager, twin, other = (hidden_states(*pair) for pair in ((runners[0], own), (runners[1], own), (runners[1], moved)))
    if not reference.runner.lossy:
        arguments = hf_inputs(reference.inputs, reference.student._prompt_rules)
        output = reference.student(**arguments, output_hidden_states=True, use_cache=False)
        limit = tolerance.widened((logits_noise(eager, other, quantum), 0.0))
        wanted = output.hidden_states[-1][0].float().numpy()
        meter.add(logits_error(eager, wanted, limit, name="hidden states of the step form"))
    with hidden_runner(bundle, runner) as shown:
        if shown is not None:
            limit = tolerance.widened((logits_noise(eager, twin, quantum), 0.0))
            meter.add(logits_error(hidden_states(shown, own), eager, limit, name="hidden states"))
        note = "" if shown is not None else "this backend shows none"
    return (
        metered("student", runner.backend, EVERY, meter, note)
        if meter.worst
        else Check("student", runner.backend, EVERY, True, note=note)
    )


def _greedy(bundle: Bundle, reference: Reference, runner: Runner, tolerance: Tolerance, noise: list[float]) -> Check:
    """Free-running tokens, as many as `noise` (that of the forced roll-out) has steps."""
    player = _first_player(reference, bundle.manifest)
    tokens: list[int] = []
    gaps: list[float] = []
    logits = player.start()
    for _ in noise:
        tokens.append(int(logits.argmax()))
        gaps.append(top_gap(logits))
        logits = player.step(tokens[-1])
    meter = Meter()
    session = SessionPlayer(Session(bundle, runner), reference.prompt, reference.images)
    note = greedy_note(meter, session, tokens, gaps, noise, tolerance)
    return metered("student", runner.backend, f"greedy, {len(tokens)} tokens", meter, note)


def _curves(backend: str, meter: Meter, tolerance: Tolerance) -> list[Curve]:
    pairs = (("logits", tolerance.logits), ("states", tolerance.state))
    return [Curve("student", backend, kind, limit, meter.curves[kind]) for kind, limit in pairs if kind in meter.curves]
