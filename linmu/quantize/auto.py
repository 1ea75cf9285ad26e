"""`--quant auto --budget BYTES`: a precision for every group of matrices, by measured error against a byte budget.

Groups are matrices that share an input (layer.py) and the head. Each starts at its smallest precision; then, while the
budget allows, the group whose next larger precision takes away most squared output error per byte gets it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from linmu.calibration.record import CalibrationRecord
from linmu.errors import InputError
from linmu.quantize.form import Choose, quantize_form
from linmu.quantize.presets import LAYER_MATRICES, Scheme
from linmu.step.form import DecoderForm


@dataclass(frozen=True)
class Option:
    """A group at one precision: bytes of its matrices, and the sum of their squared relative output errors."""

    scheme: Scheme | None
    stored_bytes: int
    error: float


def choose_by_budget(
    form: DecoderForm, record: CalibrationRecord, schemes: Sequence[Scheme], budget_bytes: int,
    progress: Callable[[str], None] = lambda _: None, head: bool = True,
) -> dict[str, Scheme | None]:  # fmt: skip
    """Scheme by group leader (None: float16) so that these matrices take at most `budget_bytes`; head: with the head.

    Raises InputError when even the smallest precisions need more.
    """
    options = measure(form, record, schemes, progress)
    if not head:
        options = {group: found for group, found in options.items() if group.startswith("layers.")}
    return spend({group: ladder(found) for group, found in options.items()}, budget_bytes)


def measure(
    form: DecoderForm, record: CalibrationRecord, schemes: Sequence[Scheme], progress: Callable[[str], None]
) -> dict[str, list[Option]]:
    """Every group at every scheme, and in float16 (error 0)."""
    found: dict[str, list[Option]] = {}
    for scheme in schemes:
        progress(f"{scheme.format.weights} of every matrix")
        quantized = quantize_form(form, record, _everywhere(scheme))
        for thunk in quantized.form.weights.values():
            thunk()  # reports fill as layers are made
        for group, members in groups(form).items():
            reports = [quantized.reports[name] for name in members]
            if all(report.precision != "float" for report in reports):
                size = sum(report.stored_bytes for report in reports)
                found.setdefault(group, []).append(Option(scheme, size, sum(r.error**2 for r in reports)))
    for group, members in groups(form).items():
        size = sum(2 * _elements(form, name) for name in members)
        found.setdefault(group, []).append(Option(None, size, 0.0))
    return found


def groups(form: DecoderForm) -> dict[str, tuple[str, ...]]:
    """Matrices by the one whose choice holds for all of them."""
    found: dict[str, tuple[str, ...]] = {}
    for i in range(form.layers):
        for name in LAYER_MATRICES:
            if name != "swin" and form.has(f"layers.{i}.{name}"):
                found[f"layers.{i}.{name}"] = (f"layers.{i}.{name}",)
        if form.has(f"layers.{i}.swin"):
            found[f"layers.{i}.in_proj"] += (f"layers.{i}.swin",)
    head = "token_embedding" if form.tied else "head"
    return found | {head: (head,)}


def ladder(options: Sequence[Option]) -> list[Option]:
    """The options worth having, from the smallest up: each has less error than every smaller one."""
    steps: list[Option] = []
    for option in sorted(options, key=lambda option: (option.stored_bytes, option.error)):
        if not steps or option.error < steps[-1].error:
            steps.append(option)
    return steps


def spend(ladders: dict[str, list[Option]], budget_bytes: int) -> dict[str, Scheme | None]:
    """One option per group, at most `budget_bytes` in all; raises InputError when that is impossible."""
    place = dict.fromkeys(ladders, 0)
    spent = sum(steps[0].stored_bytes for steps in ladders.values())
    if spent > budget_bytes:
        raise InputError("--budget is too small for these matrices", got=f"{budget_bytes} bytes",
                         expected=f"at least {spent}")  # fmt: skip
    while True:
        raises = [
            (steps[place[group]].error - steps[place[group] + 1].error, steps[place[group] + 1].stored_bytes
             - steps[place[group]].stored_bytes, group)
            for group, steps in ladders.items() if place[group] + 1 < len(steps)
        ]  # fmt: skip
        fitting = [(gain / max(cost, 1), group, cost) for gain, cost, group in raises if spent + cost <= budget_bytes]
        if not fitting:
            return {group: steps[place[group]].scheme for group, steps in ladders.items()}
        _, group, cost = max(fitting)
        place[group] += 1
        spent += cost


def _everywhere(scheme: Scheme) -> Choose:
    return lambda name: scheme


def _elements(form: DecoderForm, name: str) -> int:
    weight = form.weights[name]()
    rows, columns = weight.shape
    return rows * (form.channels if name.endswith("in_proj") else columns)
