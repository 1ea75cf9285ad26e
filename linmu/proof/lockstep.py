"""The lockstep: paths of a backend and the reference read a prompt and take the same tokens; everything is compared.

Where no inputs are rounded the reference has inputs of its own (Lockstep): wrong preprocessing, cuts of the prompt and
vision features show. Where they are, it follows one path at a time, call by call, on that path's inputs (Followed): in
no other way do both round the same values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np

from linmu.proof.comparison import Comparison, take, take_all
from linmu.proof.mirror import Mirror
from linmu.proof.paths import SESSION, Path
from linmu.proof.student_player import StudentPlayer
from linmu.proof.student_reference import Reference
from linmu.runtimes.session import Session
from linmu.verification.compare import Meter, Tolerance, Worst
from linmu.verification.golden import forced_ids, forced_token
from linmu.verification.levels import run_errors
from linmu.verification.players import Player, RunnerPlayer, SessionPlayer

T = TypeVar("T")
Choose = Callable[[int, int], int]  # (step, the reference's most likely token) -> the next token


class Track:
    """One path in a lockstep: its player and its errors. A path that raises fails and is left out from there on."""

    def __init__(self, path: Path, open_player: Callable[[], Player], mirror: Mirror | None = None):
        self.path, self.mirror, self.error = path, mirror, ""
        self.meter = Meter() if mirror is None else mirror.meter
        self._open_player = open_player
        self._player: Player | None = None

    def turn(self, act: Callable[[Player, int | None], T], token: int | None, step: int) -> T | None:
        """What act(player, token) gives; None where something is raised, now or in an earlier step."""
        if self.error:
            return None
        try:
            self._player = self._player or self._open_player()
            return act(self._player, token)
        except run_errors() as error:
            self.error = f"{type(error).__name__} at step {step}: {' '.join(str(error).split())[:300]}"
            self.meter.add(Worst(np.inf, Tolerance().logits, "raised an error", step))
            return None

    @property
    def note(self) -> str:
        """What it raised and what was followed, for the report."""
        return "; ".join(filter(None, [self.error, "" if self.mirror is None else self.mirror.note]))


class Lockstep:
    """Paths beside references that have inputs of their own: the student, if it is exact, and its step form.

    The first reference chooses tokens, the last one has the twin. Step 0 is the prompt. Every path is held to every
    reference, and the last one to the first one (`step_form`). A path may raise; a reference must not.
    """

    def __init__(self, references: Sequence[Player], twin: Player, tracks: Sequence[Track], comparison: Comparison):
        self.references, self.twin, self.tracks, self.comparison = references, twin, tracks, comparison
        self.step_form = Meter() if len(references) > 1 else None
        self.step = -1

    def advance(self, token: int | None) -> np.ndarray:
        """Let all read the prompt (None) or take a token -> the first reference's logits."""
        self.step += 1
        references = [take_all(player, token) for player in self.references]
        self.comparison.widen(references[-1], take_all(self.twin, token))
        if self.step_form is not None:
            self.comparison.hold(self.step_form, references[-1], references[0], self.step)
        for track in self.tracks:
            moment = track.turn(take_all, token, self.step)
            if moment is None:
                continue
            for reference in references:
                self.comparison.hold(track.meter, moment, reference, self.step)
        return references[0].logits


class Followed:
    """One path beside a reference that follows it: the path's runner is a mirror, which compares every call."""

    step_form = None

    def __init__(self, track: Track, mirror: Mirror):
        self.tracks, self.mirror = [track], mirror
        self.step = -1

    def advance(self, token: int | None) -> np.ndarray:
        """As Lockstep's."""
        self.step += 1
        self.tracks[0].turn(take, token, self.step)
        return self.mirror.wanted


def locksteps(reference: Reference, paths: Sequence[Path], base: Tolerance) -> Iterator[Lockstep | Followed]:
    """All paths in one lockstep, or each in its own where the reference has to follow."""
    pair = (reference.runner, reference.twin)
    if reference.runner.rounds:
        for path in paths:
            mirror = Mirror(path, pair, Comparison(base, reference.runner))
            yield Followed(Track(path, partial(path_player, reference, path, mirror), mirror), mirror)
        return
    step_form, twin = (RunnerPlayer(one, reference.bundle.manifest, reference.inputs) for one in pair)
    exact = [] if reference.runner.lossy else [StudentPlayer(reference.student, reference.inputs)]
    tracks = [Track(path, partial(path_player, reference, path, path.runner)) for path in paths]
    yield Lockstep([*exact, step_form], twin, tracks, Comparison(base, reference.runner))


def path_player(reference: Reference, path: Path, runner: Any) -> Player:
    """What takes `path` with `runner`, the path's own or one in its place."""
    if path.name != SESSION:
        return RunnerPlayer(runner, reference.bundle.manifest, reference.inputs)
    return SessionPlayer(Session(reference.bundle, runner), reference.prompt, reference.images)


def roll_out(advance: Callable[[int | None], np.ndarray], steps: int, choose: Choose) -> None:
    """The prompt, then `steps` tokens; advance(None, then each token) gives the reference's logits."""
    best = int(advance(None).argmax())
    for step in range(steps):
        best = int(advance(choose(step, best)).argmax())


def forced(reference: Reference, steps: int) -> Choose:
    """The tokens of a teacher-forced roll-out: the reference's own choice and a seeded token in turn."""
    rules = reference.student._prompt_rules
    media = [i for i in (rules.image_token_id, rules.video_token_id) if i is not None] if rules else []
    random = forced_ids(reference.runner.form.vocab, steps + 1, media)
    return lambda step, best: forced_token(step, best, random)


def greedy(step: int, best: int) -> int:
    """The tokens of a free-running roll-out: the reference's own choices."""
    return best
