"""What `linmu verify` found: checks with their worst cases, drift curves, the bisect; as JSON, text or HTML."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from rich.markup import escape
from rich.table import Table

from linmu.system.console import plain_text
from linmu.verification.compare import NOISE_ROOM, Meter, Tolerance, Worst

LEVELS = {
    "contract": "files, hashes, graph inputs and outputs",
    "graph": "each graph on its own golden inputs",
    "rollout": "teacher-forced steps: logits and every state",
    "greedy": "free-running greedy tokens",
    "prompt": "answers to the golden prompts",
    "stock": "ExecuTorch's own LLM runners on the golden prompts",
    "student": "the whole way against the student: every logit, every state element, every step",
    "bisect": "which stage brings a difference in",
}


@dataclass(frozen=True)
class Check:
    """One check: its level, backend ("" where none runs), name, verdict, worst case, first failure, and a note.

    Its level is one of LEVELS: a report shows those and no other.
    """

    level: str
    backend: str
    name: str
    ok: bool
    worst: Worst | None = None
    first: Worst | None = None
    note: str = ""
    kinds: dict[str, Worst] = field(default_factory=dict)  # the worst of "logits" and of "states"

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise ValueError(f"{self.level!r} is none of the levels {', '.join(LEVELS)}")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "level": self.level,
            "backend": self.backend or None,
            "name": self.name,
            "ok": self.ok,
            "worst": _worst_json(self.worst),
            "first_over_tolerance": _worst_json(self.first),
            "note": self.note,
            "worst_by_kind": {kind: _worst_json(worst) for kind, worst in self.kinds.items()},
        }


def metered(level: str, backend: str, name: str, meter: Meter, note: str = "") -> Check:
    """The check that a filled meter amounts to."""
    if meter.first is not None and meter.first.step is not None:
        note = "; ".join(filter(None, [f"first over tolerance at step {meter.first.step}: {meter.first.tensor}", note]))
    base, worst = Tolerance(), meter.kinds.get("logits")
    if worst is not None and base.logits < worst.error <= worst.tolerance:  # told wherever it decides
        noise = worst.tolerance / NOISE_ROOM
        why = f"float32 itself is uncertain by {noise:.1e} here (reference summed in another order): tolerance widened"
        note = "; ".join(filter(None, [note, why]))
    return Check(level, backend, name, meter.ok, meter.worst, meter.first, note, dict(meter.kinds))


@dataclass(frozen=True)
class Curve:
    """Largest error per step of one kind ("logits" or "states") with its tolerance; inf where not finite."""

    level: str
    backend: str
    kind: str
    tolerance: float
    errors: dict[int, float]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; an error that is not finite is null."""
        points = {str(step): error if math.isfinite(error) else None for step, error in sorted(self.errors.items())}
        return {
            "level": self.level,
            "backend": self.backend,
            "kind": self.kind,
            "tolerance": self.tolerance,
            "errors": points,
        }


@dataclass(frozen=True)
class VerifyReport:
    """All checks of one run; `culprit` is the first stage of the way from the student that differs."""

    bundle: str
    reference: str
    backends: tuple[str, ...]
    checks: tuple[Check, ...]
    curves: tuple[Curve, ...] = ()
    culprit: str | None = None

    @property
    def ok(self) -> bool:
        """Whether checks ran and all of them passed."""
        return bool(self.checks) and all(check.ok for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "ok": self.ok,
            "bundle": self.bundle,
            "reference": self.reference,
            "backends": list(self.backends),
            "checks": [check.to_json() for check in self.checks],
            "first_stage_that_differs": self.culprit,
            "curves": [curve.to_json() for curve in self.curves],
        }

    def to_text(self) -> str:
        """A readable table; 110 columns wide."""
        table = Table(title=f"{escape(self.bundle)} against {escape(self.reference)}", title_justify="left")
        for title in ("level", "backend", "check", "", "worst case", "tolerance"):
            table.add_column(title, overflow="fold")
        for check in self.checks:
            table.add_row(*(escape(cell) for cell in row(check)))
        lines = [f"{check.level} {check.name} {check.backend}: {check.note}" for check in self.checks if check.note]
        verdict = "agrees with its reference" if self.ok else "DOES NOT AGREE with its reference"
        if self.culprit:
            lines.append(f"first stage that differs: {self.culprit}")
        return plain_text(table, *map(escape, lines), f"{escape(self.bundle)} {verdict}", width=120)


def row(check: Check) -> tuple[str, str, str, str, str, str]:
    """The cells of a check's line in a table."""
    worst, verdict = check.worst, "ok" if check.ok else "FAILED"
    if worst is None:
        return (check.level, check.backend, check.name, verdict, "", "")
    step = "" if worst.step is None else f", step {worst.step}"
    element = f": {worst.element}" if not worst.ok and worst.element else ""
    case = f"{worst.error:.2e} {worst.tensor}{step}{element}"
    return (check.level, check.backend, check.name, verdict, case, f"{worst.tolerance:.0e}")


def _worst_json(worst: Worst | None) -> dict[str, Any] | None:
    if worst is None:
        return None
    error = worst.error if math.isfinite(worst.error) else str(worst.error)
    return {
        "error": error,
        "tolerance": worst.tolerance,
        "tensor": worst.tensor,
        "step": worst.step,
        "element": worst.element,
    }
