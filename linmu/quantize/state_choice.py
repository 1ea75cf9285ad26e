"""The state's part of a byte budget: what its precisions take and cost, and which of them leaves the least error.

An error is the sum over layers of squared relative output errors, of a state as of matrices: the state's is measured
by `linmu calibrate` (linmu.calibration.rounded_state) and counts where it is largest, at the end of a text of
`--state-tokens`. float32 states have none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from math import isnan, nan
from typing import Any

from linmu.calibration.error_curve import relative_errors
from linmu.calibration.record import CalibrationRecord
from linmu.errors import InputError
from linmu.formats.manifest import state_bytes
from linmu.formats.presets import Scheme
from linmu.step.form import DecoderForm

UNMEASURED = "the calibration record does not say what float16 states cost"


@dataclass(frozen=True)
class StateOption:
    """A precision of the state: bytes of one whole state, its error (NaN: unknown), and relative ones by layer.

    roundings: how often (at least) the state had been rounded where the largest errors were measured; 0: never.
    """

    precision: str
    stored_bytes: int
    error: float
    layer_errors: tuple[float, ...] = ()
    roundings: int = 0


@dataclass(frozen=True)
class Outcome:
    """A state, and the matrices that the rest of the budget buys: scheme by group, their bytes and error.

    `matrix_error` is None where even the smallest matrices do not fit; `matrix_bytes` is then what those take.
    """

    state: StateOption
    matrix_bytes: int
    matrix_error: float | None
    schemes: dict[str, Scheme | None] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """What the budget counts: matrices and one state."""
        return self.matrix_bytes + self.state.stored_bytes

    @property
    def error(self) -> float | None:
        """Of matrices and state together; None where they do not fit."""
        return None if self.matrix_error is None else self.matrix_error + self.state.error

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, without the schemes (reports of matrices have them)."""
        return {
            "state": asdict(self.state),
            "matrix_bytes": self.matrix_bytes,
            "matrix_error": self.matrix_error,
            "bytes": self.bytes,
            "error": self.error,
        }


@dataclass(frozen=True)
class BudgetReport:
    """What a byte budget led to: the outcome taken, why its state was, and the outcomes with every state looked at."""

    budget_bytes: int
    chosen: Outcome
    reason: str
    outcomes: tuple[Outcome, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "budget_bytes": self.budget_bytes,
            "state": self.chosen.state.precision,
            "reason": self.reason,
            "outcomes": [outcome.to_json() for outcome in self.outcomes],
        }


def state_options(form: DecoderForm, record: CalibrationRecord, asked: str | None) -> tuple[StateOption, ...]:
    """The precisions to choose from, float32 first: the one that was asked for, or those whose error is known."""
    every = (StateOption("fp32", _size(form, "fp32"), 0.0), _half(form, record))
    if asked is not None:
        return tuple(option for option in every if option.precision == asked)
    return tuple(option for option in every if not isnan(option.error))


def _half(form: DecoderForm, record: CalibrationRecord) -> StateOption:
    names = [f"layers.{i}.recurrent" for i in range(form.layers)]
    curves = [relative_errors(record.float16_states[name]) for name in names if name in record.float16_states]
    if len(curves) < form.layers or not all(curves):  # an older record, or one without a single decode step
        return StateOption("fp16", _size(form, "fp16"), nan)
    largest = [max((error, count) for count, error in curve.items()) for curve in curves]
    errors, counts = zip(*largest, strict=True)
    return StateOption("fp16", _size(form, "fp16"), sum(error**2 for error in errors), errors, max(counts))


def _size(form: DecoderForm, precision: str) -> int:
    return state_bytes(replace(form, state=precision).state_specs())


def choose_state(outcomes: Sequence[Outcome], budget_bytes: int, asked: bool) -> BudgetReport:
    """The outcome with least error; the first of equals.

    Raises InputError, with the smallest budget possible, when none fits.
    """
    fitting = [outcome for outcome in outcomes if outcome.error is not None]
    if not fitting:
        least = min(outcomes, key=lambda outcome: outcome.bytes)
        raise InputError(
            "--budget is too small for the matrices and one state",
            got=f"{budget_bytes} bytes",
            expected=f"at least {least.bytes} ({least.matrix_bytes} of matrices, {least.state.stored_bytes} of an "
            f"{least.state.precision} state)",
            fix=_remedy(outcomes, asked),
        )
    chosen = min(fitting, key=lambda outcome: outcome.error or 0.0)
    return BudgetReport(budget_bytes, chosen, _reason(chosen, outcomes, asked), tuple(outcomes))


def _remedy(outcomes: Sequence[Outcome], asked: bool) -> str | None:
    """How a smaller state could be had, where the one of float32 was all that was looked at."""
    if len(outcomes) > 1 or outcomes[0].state.precision == "fp16":
        return None
    return "without --state float16 is tried, too" if asked else f"calibrate again, or --state fp16: {UNMEASURED}"


def _reason(chosen: Outcome, outcomes: Sequence[Outcome], asked: bool) -> str:
    if asked:
        return "--state asked for it"
    if len(outcomes) == 1:
        return UNMEASURED + ": calibrate again to have the state chosen"
    other = next(outcome for outcome in outcomes if outcome is not chosen)
    saved = abs(other.state.stored_bytes - chosen.state.stored_bytes)
    if other.error is None:
        return f"the matrices do not fit beside an {other.state.precision} state, which takes {saved} bytes more"
    difference = f"a total error of {chosen.error:.3g} instead of {other.error:.3g}"
    if chosen.state.error:
        return f"its {saved} bytes less buy better matrices: {difference}"
    return f"rounding it would cost more than the {saved} bytes that it saves: {difference}"
