"""The levels of a student whose bundle rounds inputs: every path of a backend, followed by the reference (torch)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path as FilePath
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from torch import Tensor

from linmu.errors import InputError
from linmu.formats.bundle import Bundle
from linmu.formats.matrix_format import MatrixFormat
from linmu.proof.exposed import ExposedRunner
from linmu.proof.exposed_phone import ExposedEtRunner
from linmu.proof.followed import Mirror, Seen
from linmu.proof.student_reference import Reference
from linmu.reference.torch_runner import TorchRunner
from linmu.runtimes.base import Runner
from linmu.runtimes.et_runner import EtRunner
from linmu.runtimes.ort_runner import OrtRunner
from linmu.runtimes.session import Session
from linmu.step.torch_formats import round_input, round_named
from linmu.verification.compare import TINY, Meter, Tolerance, Worst
from linmu.verification.golden import forced_ids, forced_token
from linmu.verification.graph_files import GraphFiles
from linmu.verification.levels import guarded
from linmu.verification.players import Player, RunnerPlayer, SessionPlayer
from linmu.verification.report import Check, Curve, metered

FILES, SESSION = "graph files", "session"


class Recorder:
    """The rounding of an eager backend that shows its inputs in `seen`."""

    def __init__(self) -> None:
        self.seen: Seen = {}

    def __call__(self, weight: str, x: Tensor, format: MatrixFormat, scale: Tensor) -> Tensor:
        """X rounded by itself."""
        self.seen[weight] = x.numpy()
        return round_input(x, format, scale)


@dataclass(frozen=True)
class Path:
    """A way through a backend: the runner that shows its inputs, how it shows them, and the same as it really runs."""

    name: str
    shown: Runner
    seen: Callable[[], Seen]
    bare: Runner | None = None


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
    with ExitStack() as stack:
        if isinstance(runner, OrtRunner):
            shown = stack.enter_context(ExposedRunner(bundle, runner.threads))
            seen = lambda: shown.seen  # noqa: E731
            files = Path(FILES, GraphFiles(shown), seen, GraphFiles(runner))
            yield [files, Path(SESSION, shown, seen, runner)]
        elif isinstance(runner, TorchRunner):
            recorder = Recorder()
            runner.ops.rounding = recorder
            stack.callback(setattr, runner.ops, "rounding", round_named)
            yield [Path(SESSION, runner, lambda: recorder.seen)]
        elif isinstance(runner, EtRunner):
            folder = stack.enter_context(TemporaryDirectory())
            exposed = stack.enter_context(ExposedEtRunner(bundle, reference.runner.form, FilePath(folder)))
            yield [Path(SESSION, exposed, lambda: exposed.seen, runner)]
        else:
            raise InputError(
                f"--student with backend {runner.backend} and a bundle that rounds inputs",
                got="a backend that does not show what it rounds",
                fix="--backend onnxruntime, or without --student",
            )


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
