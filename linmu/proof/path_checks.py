"""The checks of every path of a backend, teacher-forced and free-running, and which stage each of them is about."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from linmu.proof.lockstep import Choose, Track, forced, greedy, locksteps, roll_out
from linmu.proof.paths import SESSION, Path, exposed_paths, plain_paths
from linmu.proof.same_bits import same_bits
from linmu.proof.student_reference import Reference
from linmu.runtimes.base import Runner
from linmu.verification.compare import Meter, Tolerance
from linmu.verification.levels import guarded
from linmu.verification.report import Check, Curve, metered

STUDENT, STEP_FORM = "student", "step form"


class StageCheck(NamedTuple):
    """A check, and the stage of the way that brings a difference in where it is the first one to fail."""

    stage: str
    check: Check


def named_stage(check: Check) -> StageCheck:
    """A check whose name says the stage."""
    return StageCheck(check.name, check)


def path_checks(
    reference: Reference, runner: Runner, base: Tolerance, steps: int
) -> tuple[list[StageCheck], list[Curve]]:
    """One backend on every path that a user may take, in order: step form (float32), graph files, runner, session.

    Raises InputError for a backend that does not show what it rounds (TensorRT's engines).
    """
    rounds, form = reference.runner.rounds, reference.runner.form
    with exposed_paths(reference.bundle, runner, form) if rounds else plain_paths(runner) as paths:
        checks, curves = _forced_checks(reference, paths, base, steps, forced(reference, steps))
        return [*checks, named_stage(_greedy_check(reference, paths[-1], base, steps))], curves


def _forced_checks(
    reference: Reference, paths: list[Path], base: Tolerance, steps: int, choose: Choose
) -> tuple[list[StageCheck], list[Curve]]:
    """Teacher-forced: logits and every state of every step, and of every call where inputs are rounded."""
    checks: list[StageCheck] = []
    curves: list[Curve] = []
    before = STEP_FORM
    for lockstep in locksteps(reference, paths, base):
        roll_out(lockstep.advance, steps, choose)
        if lockstep.step_form is not None:
            checks.append(named_stage(_step_form_check(paths[0].runner.backend, lockstep.step_form)))
        for track in lockstep.tracks:
            path, (level, name) = track.path, _place(reference, track.path, steps)
            check = metered(level, path.runner.backend, name, track.meter, track.note)
            checks.append(StageCheck(f"{before} -> {path.label}", check))
            curves += _curves(track, base)
            if path.bare is not None:
                checks.append(named_stage(_bits_check(reference, path, steps, choose)))
            before = path.label
    return checks, curves


def _place(reference: Reference, path: Path, steps: int) -> tuple[str, str]:
    """The level and the name of a path's check."""
    if reference.runner.rounds:
        return "student", f"{path.name}: prompt and {steps} steps"
    if path.name == SESSION:
        return "student", f"prompt and {steps} steps"
    return "bisect", f"{STEP_FORM} -> {path.label}"


def _step_form_check(backend: str, meter: Meter) -> Check:
    return metered("bisect", backend, f"{STUDENT} -> {STEP_FORM}", meter)


def _bits_check(reference: Reference, path: Path, steps: int, choose: Choose) -> Check:
    name = f"{path.name}: the same bits when nothing is shown"
    check = partial(same_bits, reference, path, name, steps, choose)
    return guarded("student", path.bare.backend, name, check)


def _greedy_check(reference: Reference, path: Path, base: Tolerance, steps: int) -> Check:
    """Free-running: the reference's choices; another choice of the backend must be a tie."""
    (lockstep,) = locksteps(reference, [path], base)
    roll_out(lockstep.advance, steps, greedy)
    (track,) = lockstep.tracks
    return metered("student", path.runner.backend, f"greedy, {steps + 1} tokens", track.meter, track.note)


def _curves(track: Track, base: Tolerance) -> list[Curve]:
    """A path's errors by step; a session's are simply the backend's."""
    path, points = track.path, track.meter.curves
    label = path.runner.backend if path.name == SESSION else f"{path.runner.backend} {path.name}"
    limits = (("logits", base.logits), ("states", base.state))
    return [Curve("student", label, kind, limit, points[kind]) for kind, limit in limits if kind in points]
