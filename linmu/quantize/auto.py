"""`--quant auto --budget BYTES`: precisions of matrices and state, by measured error against a byte budget.

The budget counts the matrices that are chosen among, and one state. Groups are matrices that share an input (layer.py)
and the head. Each starts at its smallest precision; then, while the budget allows, the group whose next larger
precision takes away most squared output error per byte gets it. That is done beside a float32 state and beside a
float16 one (state_choice.py); the smaller sum of all errors decides, and float32 where they are equal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from linmu.calibration.record import CalibrationRecord
from linmu.formats.presets import LAYER_MATRICES, Scheme
from linmu.quantize.form import Choose, matrix_elements, quantize_form
from linmu.quantize.state_choice import BudgetReport, Outcome, StateOption, choose_state, state_options
from linmu.step.form import DecoderForm


@dataclass(frozen=True)
class Option:
    """A group at one precision: bytes of its matrices, and the sum of their squared relative output errors."""

    scheme: Scheme | None
    stored_bytes: int
    error: float


def choose_by_budget(
    form: DecoderForm,
    record: CalibrationRecord,
    schemes: Sequence[Scheme],
    budget_bytes: int,
    progress: Callable[[str], None] = lambda _: None,
    head: bool = True,
    state: str | None = None,
) -> BudgetReport:
    """Precisions of the state and of every group of matrices, together at most `budget_bytes`.

    head: whether the head is among the matrices; state: the state's precision where it is given (None: chosen).
    Raises InputError when even the smallest precisions need more.
    """
    options = measure(form, record, schemes, progress)
    if not head:
        options = {group: steps for group, steps in options.items() if group.startswith("layers.")}
    ladders = {group: ladder(steps) for group, steps in options.items()}
    outcomes = [outcome(ladders, item, budget_bytes) for item in state_options(form, record, state)]
    return choose_state(outcomes, budget_bytes, asked=state is not None)


def outcome(ladders: dict[str, list[Option]], state: StateOption, budget_bytes: int) -> Outcome:
    """What a budget buys beside a state of one precision."""
    smallest = sum(steps[0].stored_bytes for steps in ladders.values())
    if smallest + state.stored_bytes > budget_bytes:
        return Outcome(state, smallest, None)
    chosen = spend(ladders, budget_bytes - state.stored_bytes)
    size, error = (sum(getattr(option, name) for option in chosen.values()) for name in ("stored_bytes", "error"))
    return Outcome(state, size, error, {group: option.scheme for group, option in chosen.items()})


def measure(
    form: DecoderForm, record: CalibrationRecord, schemes: Sequence[Scheme], progress: Callable[[str], None]
) -> dict[str, list[Option]]:
    """Every group at every scheme, and in float16 (error 0)."""
    options: dict[str, list[Option]] = {}
    for scheme in schemes:
        progress(f"{scheme.format.weights} of every matrix")
        quantized = quantize_form(form, record, _everywhere(scheme))
        for thunk in quantized.form.weights.values():
            thunk()  # reports fill as layers are made
        for group, members in groups(form).items():
            reports = [quantized.reports[name] for name in members]
            if all(report.precision != "float" for report in reports):
                size = sum(report.stored_bytes for report in reports)
                options.setdefault(group, []).append(Option(scheme, size, sum(r.error**2 for r in reports)))
    for group, members in groups(form).items():
        size = sum(2 * matrix_elements(form, name) for name in members)
        options.setdefault(group, []).append(Option(None, size, 0.0))
    return options


def groups(form: DecoderForm) -> dict[str, tuple[str, ...]]:
    """Matrices by the one whose choice holds for all of them."""
    members: dict[str, tuple[str, ...]] = {}
    for i in range(form.layers):
        for name in LAYER_MATRICES:
            if name != "swin" and form.has(f"layers.{i}.{name}"):
                members[f"layers.{i}.{name}"] = (f"layers.{i}.{name}",)
        if form.has(f"layers.{i}.swin"):
            members[f"layers.{i}.in_proj"] += (f"layers.{i}.swin",)
    head = "token_embedding" if form.tied else "head"
    return members | {head: (head,)}


def ladder(options: Sequence[Option]) -> list[Option]:
    """The options worth having, from the smallest up: each has less error than every smaller one."""
    steps: list[Option] = []
    for option in sorted(options, key=lambda option: (option.stored_bytes, option.error)):
        if not steps or option.error < steps[-1].error:
            steps.append(option)
    return steps


def spend(ladders: dict[str, list[Option]], budget_bytes: int) -> dict[str, Option]:
    """One option per group, at most `budget_bytes` in all, which the smallest ones must fit into."""
    place = dict.fromkeys(ladders, 0)
    spent = sum(steps[0].stored_bytes for steps in ladders.values())
    while True:
        raises = [
            (
                steps[place[group]].error - steps[place[group] + 1].error,
                steps[place[group] + 1].stored_bytes - steps[place[group]].stored_bytes,
                group,
            )
            for group, steps in ladders.items()
            if place[group] + 1 < len(steps)
        ]
        fitting = [(gain / max(cost, 1), group, cost) for gain, cost, group in raises if spent + cost <= budget_bytes]
        if not fitting:
            return {group: steps[place[group]] for group, steps in ladders.items()}
        _, group, cost = max(fitting)
        place[group] += 1
        spent += cost


def _everywhere(scheme: Scheme) -> Choose:
    return lambda name: scheme
