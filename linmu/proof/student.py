"""The levels that need the student (torch, transformers): the whole way in lockstep, and the bisect."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from linmu.formats.bundle import Bundle
from linmu.proof.part_checks import positions_check, vision_check
from linmu.proof.path_checks import StageCheck, named_stage, path_checks
from linmu.proof.student_reference import Reference, open_reference
from linmu.runtimes.base import Runner
from linmu.verification.compare import Tolerance
from linmu.verification.report import Check, Curve


def student_checks(
    bundle: Bundle,
    folder: Path,
    runners: Sequence[Runner],
    tolerance: Tolerance,
    steps: int,
    calibration: Path | None = None,
) -> tuple[list[Check], list[Curve], str | None]:
    """Every runner against the student: checks, curves, and the first stage that differs (None if all agree)."""
    checks: list[StageCheck] = []
    curves: list[Curve] = []
    with tempfile.TemporaryDirectory() as scratch, one_thread():
        reference = open_reference(bundle, folder, Path(scratch), calibration)
        for runner in runners:
            backend_checks, backend_curves = _backend_checks(reference, runner, tolerance, steps)
            checks, curves = checks + backend_checks, curves + backend_curves
    culprit = next((stage for stage, check in checks if not check.ok), None)
    return [check for _, check in checks], curves, culprit


def _backend_checks(
    reference: Reference, runner: Runner, tolerance: Tolerance, steps: int
) -> tuple[list[StageCheck], list[Curve]]:
    """In the order of the way: the first check that fails names the stage that brings the difference in."""
    checks: list[StageCheck] = []
    if reference.inputs.vision_calls:
        checks.append(named_stage(vision_check(reference, runner, tolerance)))
    paths, curves = path_checks(reference, runner, tolerance, steps)
    checks += paths
    if not reference.runner.rounds:
        checks.append(named_stage(positions_check(reference, runner, tolerance)))
    return checks, curves


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch in one thread: its pool and the spinning one of a runtime would fight for the same cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
