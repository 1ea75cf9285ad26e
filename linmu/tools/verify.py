"""`linmu verify`: every backend that is here against the golden vectors, and against the student where it is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from linmu.errors import BundleError, InputError
from linmu.files.atomic import check_file_target, write_bytes
from linmu.formats.bundle import Bundle, open_bundle
from linmu.formats.manifest_object import MANIFEST_NAME
from linmu.runtimes.backends import BACKENDS, available_backends, named, open_runner, unusable
from linmu.runtimes.base import Runner
from linmu.system.components import require
from linmu.verification.compare import TOLERANCE
from linmu.verification.float_inputs import golden_runner
from linmu.verification.golden import Golden, read_golden
from linmu.verification.graph_files import GraphFiles
from linmu.verification.hidden import hidden_runner
from linmu.verification.levels import POSITIONS, GoldenLevels, graph_io_check, guarded
from linmu.verification.report import Check, Curve, VerifyReport

Say = Callable[[str], None]


def verify(
    bundle: Path | str,
    *,
    student: Path | str | None = None,
    calibration: Path | str | None = None,
    backends: Sequence[str] = (),
    steps: int = 64,
    report: Path | str | None = None,
    progress: Say | None = None,
) -> VerifyReport:
    """Check a bundle: contract, graphs, roll-out, greedy tokens, prompts; with `student` the whole way in lockstep.

    calibration: the record that a quantized phone bundle was exported with, where `student` is given.
    backends: names (default: all that are here). steps: of the roll-outs (golden vectors hold at most 256). report: an
    HTML file to write. A check that fails stands in the report and the others still run; raises InputError for a
    bundle that is none, has no reference, or was made of another student, MissingComponentError for a missing backend.
    """
    folder, say = Path(bundle), progress or (lambda _: None)
    student, calibration, report = (None if path is None else Path(path) for path in (student, calibration, report))
    if report is not None:
        check_file_target(report)
    if student is not None:
        for module in ("torch", "transformers"):
            require(module, needed_for="linmu verify --student", extra="convert")
    opened, contract = _open(folder)
    outcome = VerifyReport(str(folder), "its contract", (), (contract,))
    if opened is not None:
        chosen = tuple(backends) or tuple(available_backends(opened))
        if not backends:
            _say_skipped(opened, chosen, say)
        outcome = _verify(opened, contract, student, calibration, chosen, steps, say)
    if report is not None:
        from linmu.verification.report_html import report_html

        write_bytes(Path(report), report_html(outcome).encode())
    return outcome


def _say_skipped(bundle: Bundle, chosen: tuple[str, ...], say: Say) -> None:
    """A backend that the bundle names and that is not checked is told: silence would read as agreement."""
    for name in bundle.manifest.backends:
        if name in BACKENDS and name not in chosen:
            say(f"{name}: not checked here ({unusable(bundle, name)})")


def _open(folder: Path) -> tuple[Bundle | None, Check]:
    """Open a bundle; with damaged files it is still opened, if that is possible, and the check says what is wrong."""
    if not (folder / MANIFEST_NAME).is_file():
        open_bundle(folder)  # raises: this is no bundle
    try:
        return open_bundle(folder), Check("contract", "", "files and hashes", True)
    except BundleError as error:
        failed = Check("contract", "", "files and hashes", False, note=str(error))
    try:
        return open_bundle(folder, verify_hashes=False), failed
    except BundleError:
        return None, failed


def _verify(
    bundle: Bundle,
    contract: Check,
    student: Path | None,
    calibration: Path | None,
    backends: tuple[str, ...],
    steps: int,
    say: Say,
) -> VerifyReport:
    golden = read_golden(bundle) if bundle.manifest.golden or student is None else None
    checks, curves, culprit = [contract], list[Curve](), None
    if not backends:
        reasons = [f"{name}: {unusable(bundle, name)}" for name in bundle.manifest.backends if name in BACKENDS]
        raise InputError(
            "no backend of this bundle can run here",
            got="; ".join(reasons),
            expected=" or ".join(bundle.manifest.backends),
        )
    with ExitStack() as stack:
        runners: list[Runner] = []
        for backend in backends:
            try:
                runners.append(stack.enter_context(open_runner(bundle, backend)))
            except BundleError as error:
                checks.append(Check("contract", backend, "opening the graphs", False, note=str(error)))
        for runner in runners:
            own_checks, own_curves = _without_student(bundle, golden, runner, steps, say)
            checks, curves = checks + own_checks, curves + own_curves
        if student is not None and runners:
            from linmu.proof.student import student_checks

            say("the student in lockstep")
            lockstep_checks, lockstep_curves, culprit = student_checks(
                bundle, student, runners, TOLERANCE, steps, calibration
            )
            checks, curves = checks + lockstep_checks, curves + lockstep_curves
    reference = " and ".join(
        ["its golden vectors"] * (golden is not None) + [f"student {student}"] * (student is not None)
    )
    return VerifyReport(str(bundle.folder), reference, backends, tuple(checks), tuple(curves), culprit)


def _without_student(
    bundle: Bundle, golden: Golden | None, runner: Runner, steps: int, say: Say
) -> tuple[list[Check], list[Curve]]:
    """Everything that one backend can show by itself: graph files, golden vectors, golden prompts."""
    checks, curves, row = list[Check](), list[Curve](), BACKENDS[runner.backend]
    with ExitStack() as stack:
        try:
            opened = runner if golden is None else stack.enter_context(golden_runner(bundle, golden, runner))
        except BundleError as error:
            return [Check("contract", runner.backend, "opening the graphs", False, note=str(error))], curves
        if (files := named(row.graph_files)) is not None:
            say(f"{runner.backend}: graph files")
            checks, curves = _graph_file_checks(bundle, golden, opened, files, steps)
        if (kernels := named(row.kernels)) is not None:
            checks = [*kernels(bundle, golden), *checks]
        if golden is not None:
            say(f"{runner.backend}: golden vectors")
            vector_checks, vector_curves = graph_checks(bundle, golden, opened, steps)
            checks = checks + vector_checks + position_checks(bundle, golden, opened)
            curves = curves + vector_curves
    if golden is not None:
        say(f"{runner.backend}: golden prompts")
        checks += prompt_checks(bundle, golden, runner)
    if golden is not None and (plan := named(row.stock)) is not None:
        say(f"{runner.backend}: the stock runner")
        checks += [guarded(level, runner.backend, name, check) for level, name, check in plan(bundle, golden)]
    return checks, curves


def graph_checks(bundle: Bundle, golden: Golden, runner: Runner, steps: int) -> tuple[list[Check], list[Curve]]:
    """All golden graph vectors of one backend, in order; each runs whatever the ones before it found."""
    levels = GoldenLevels(bundle, golden, runner, TOLERANCE)
    plan: list[tuple[str, str, Callable[[], Check]]] = [("graph", "token_embedding", levels.embedding)]
    if "vision/embeddings" in golden.graphs:
        plan.append(("graph", "vision", levels.vision))
    graphs: list[tuple[str, str, Callable[[], Check]]] = [
        ("prefill", "prefill", partial(levels.prefill, "prefill")),
        ("text", "prefill, text only", partial(levels.prefill, "text")),
        ("step", "step", levels.step),
    ]
    plan += [("graph", name, check) for vector, name, check in graphs if f"{vector}/logits" in golden.graphs]
    plan.append(("rollout", f"{steps} steps", partial(levels.rollout, steps)))
    return [guarded(level, runner.backend, name, check) for level, name, check in plan], levels.curves


def position_checks(bundle: Bundle, golden: Golden, runner: Runner) -> list[Check]:
    """Hidden states of all positions of the golden prompts, on backends that show them."""
    vectors = [name for name in POSITIONS if f"{name}/hidden/projection" in golden.graphs]
    if not vectors:
        return []
    try:
        with hidden_runner(bundle, runner, float_inputs=golden.float_inputs) as shown:
            if shown is None:
                return []
            levels = GoldenLevels(bundle, golden, shown, TOLERANCE)
            plan = [(f"{POSITIONS[name]}, every position", partial(levels.positions, name)) for name in vectors]
            return [guarded("graph", runner.backend, name, check) for name, check in plan]
    except BundleError as error:
        return [Check("graph", runner.backend, "every position", False, note=str(error))]


def prompt_checks(bundle: Bundle, golden: Golden, runner: Runner) -> list[Check]:
    """The golden prompts, as a user asks them."""
    levels = GoldenLevels(bundle, golden, runner, TOLERANCE)
    plan: list[tuple[str, str, Callable[[], Check]]] = []
    for prompt in golden.prompts:
        plan.append(("greedy", str(prompt["name"]), partial(levels.greedy, prompt)))
    for prompt in golden.prompts:
        plan.append(("prompt", f"{prompt['name']}: ids and pixels", partial(levels.preprocessing, prompt)))
        plan.append(("prompt", f"{prompt['name']}: text", partial(levels.answer, prompt)))
    return [guarded(level, runner.backend, name, check) for level, name, check in plan]


def _graph_file_checks(
    bundle: Bundle, golden: Golden | None, runner: Runner, opener: Callable[[Runner], GraphFiles], steps: int
) -> tuple[list[Check], list[Curve]]:
    """Each graph file: inputs and outputs, then (the runner may decode without them) embeddings and steps."""
    with opener(runner) as files:
        checks = [
            guarded("contract", runner.backend, spec.file, partial(graph_io_check, runner, bundle, name))
            for name, spec in bundle.manifest.graphs.items()
        ]
        if golden is None:
            return checks, []
        levels = GoldenLevels(bundle, golden, files, TOLERANCE, "graph files")
        plan: list[tuple[str, str, Callable[[], Check]]] = [
            ("graph", "token_embedding.onnx", partial(levels.embedding, "token_embedding.onnx")),
            ("rollout", "step.onnx", partial(levels.rollout, steps, "step.onnx, ")),
        ]
        if "step/logits" in golden.graphs:
            plan.insert(1, ("graph", "step.onnx", partial(levels.step, "step.onnx")))
        checks += [guarded(level, runner.backend, name, check) for level, name, check in plan]
        return checks, levels.curves
