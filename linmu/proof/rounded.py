"""The levels of a student whose bundle rounds inputs: every path of a backend, followed by the reference (torch)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from linmu.errors import InputError
from linmu.formats.bundle import Bundle
from linmu.proof.followed import Mirror
from linmu.proof.paths import FILES, Path
from linmu.proof.student_reference import Reference
from linmu.runtimes.backends import BACKENDS, named
from linmu.runtimes.base import Runner
from linmu.runtimes.session import Session
from linmu.verification.compare import TINY, Meter, Tolerance, Worst
from linmu.verification.golden import forced_ids, forced_token
from linmu.verification.levels import guarded
from linmu.verification.players import Player, RunnerPlayer, SessionPlayer
from linmu.verification.report import Check, Curve, metered


def rounded_checks(
    bundle: Bundle, reference: Reference, runner: Runner, tolerance: Tolerance, steps: int
) -> tuple[list[Check], list[Curve]]:
    """One backend on every path that a user may take, call by call.

    Raises InputError for a backend that does not show what it rounds (TensorRT's engines).
    """
    checks: list[Check] = []
    curves: list[Curve] = []
    with _paths(bundle, reference, runner) as paths:
        for path in paths:
            name = f"{path.name}: prompt and {steps} steps"
            forced = partial(_forced, bundle, reference, path, tolerance, steps, curves)
            checks.append(guarded("student", runner.backend, name, forced))
            if path.bare is not None:
                name = f"{path.name}: the same bits when nothing is shown"
                bits = partial(_bits, bundle, reference, path, steps, name)
                checks.append(guarded("student", runner.backend, name, bits))
        greedy = partial(_greedy, bundle, reference, paths[-1], tolerance, steps)
        checks.append(guarded("student", runner.backend, "greedy", greedy))
    return checks, curves


@contextmanager
def _paths(bundle: Bundle, reference: Reference, runner: Runner) -> Iterator[list[Path]]:
    """The paths of a backend; the last one is a session's."""
    exposer = named(BACKENDS[runner.backend].exposer)
    if exposer is None:
        raise InputError(
            f"--student with backend {runner.backend} and a bundle that rounds inputs",
            got="a backend that does not show what it rounds",
            fix="--backend onnxruntime, or without --student",
        )
    with exposer(bundle, runner, reference.runner.form) as paths:
        yield paths


def _player(bundle: Bundle, reference: Reference, path: Path, runner: Any) -> Player:
    if path.name == FILES:
        return RunnerPlayer(runner, bundle.manifest, reference.inputs)
    return SessionPlayer(Session(bundle, runner), reference.prompt, reference.images)


def _tokens(reference: Reference, steps: int) -> np.ndarray:
    rules = reference.student._prompt_rules
    media = [i for i in (rules.image_token_id, rules.video_token_id) if i is not None] if rules else []
    return forced_ids(reference.runner.form.vocab, steps + 1, media)


def _forced(
    bundle: Bundle, reference: Reference, path: Path, tolerance: Tolerance, steps: int, curves: list[Curve]
) -> Check:
    """Teacher-forced: inputs of rounded products, logits and every state of every call."""
    with Mirror(path.shown, path.seen, (reference.runner, reference.twin), tolerance) as mirror:
        player, random = _player(bundle, reference, path, mirror), _tokens(reference, steps)
        player.start()
        for step in range(steps):
            player.step(forced_token(step, int(mirror.wanted.argmax()), random))
    for kind, limit in (("logits", tolerance.logits), ("states", tolerance.state)):
        label = f"{mirror.backend} {path.name}"
        curves.append(Curve("student", label, kind, limit, mirror.meter.curves.get(kind, {})))
    return metered("student", mirror.backend, f"{path.name}: prompt and {steps} steps", mirror.meter, mirror.note)


def _bits(bundle: Bundle, reference: Reference, path: Path, steps: int, name: str) -> Check:
    """Showing inputs changes nothing: logits of every call and all states at the end, bit by bit."""
    assert path.bare is not None
    players = [_player(bundle, reference, path, runner) for runner in (path.shown, path.bare)]
    meter, random = Meter(), _tokens(reference, steps)
    logits = [player.start().copy() for player in players]
    for step in range(steps + 1):
        _same(meter, logits[0], logits[1], "logits", step)
        if step < steps:
            token = forced_token(step, int(logits[1].argmax()), random)
            logits = [player.step(token).copy() for player in players]
    shown, bare = (player.state() for player in players)
    for tensor, value in bare.items():
        _same(meter, shown[tensor], value, tensor, steps)
    return metered("student", path.bare.backend, name, meter)


def _same(meter: Meter, shown: np.ndarray, bare: np.ndarray, tensor: str, step: int) -> None:
    same = shown.shape == bare.shape and shown.tobytes() == bare.tobytes()
    meter.add(Worst(0.0 if same else np.inf, TINY, tensor, step, "" if same else "other bits"))


def _greedy(bundle: Bundle, reference: Reference, path: Path, tolerance: Tolerance, steps: int) -> Check:
    """Free-running: the reference's choices; another choice of the backend must be a tie."""
    with Mirror(path.shown, path.seen, (reference.runner, reference.twin), tolerance) as mirror:
        player = _player(bundle, reference, path, mirror)
        player.start()
        for _ in range(steps):
            player.step(int(mirror.wanted.argmax()))
    return metered("student", mirror.backend, f"greedy, {steps + 1} tokens", mirror.meter, mirror.note)
