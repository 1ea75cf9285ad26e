"""From texts to figures: accuracy by task with intervals, the teacher beside it, and how both look on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from linmu.evaluation.intervals import Estimate, mean_of, paired_difference, wilson
from linmu.evaluation.questions import Question
from linmu.evaluation.scoring import RULES, Verdict, normalised


@dataclass(frozen=True)
class Against:
    """A teacher on the same questions.

    difference: the model's accuracy minus the teacher's; share: the one divided by the other (None where the teacher
    is never right); agreement: the share of equal texts; gained, lost: questions scored higher and lower than by the
    teacher.
    """

    accuracy: Estimate
    difference: Estimate
    share: float | None
    agreement: float
    gained: int
    lost: int
    guessed: int


@dataclass(frozen=True)
class Row:
    """Accuracy over `n` questions; guessed: those whose answer could not be read and was drawn, as the rule says."""

    n: int
    accuracy: Estimate
    guessed: int
    teacher: Against | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; an interval is [low, high]."""
        values: dict[str, Any] = {"n": self.n, "guessed": self.guessed, **_flat(self.accuracy)}
        if self.teacher is None:
            return values
        teacher = self.teacher
        names = ("share", "agreement", "gained", "lost")
        return values | {
            "teacher": {**_flat(teacher.accuracy), "guessed": teacher.guessed},
            "difference": teacher.difference.value,
            "difference_interval": [teacher.difference.low, teacher.difference.high],
            **{name: getattr(teacher, name) for name in names},
        }


@dataclass(frozen=True)
class Asked:
    """A model that was asked: what it is, where, how many answers came from the predictions file, seconds it took."""

    kind: str
    folder: str
    backend: str
    identity: str
    resumed: int
    seconds: float
    mean_tokens: float
    unfinished: int  # answers that ran into the limit of tokens

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Evaluation:
    """What `linmu eval` found: micro over all questions, macro the unweighted mean over tasks, rows by task and label.

    data: folder, format, split, number of questions in the set and asked, seed, most tokens of an answer.
    """

    data: dict[str, Any]
    model: Asked
    teacher: Asked | None
    micro: Row
    macro: Row
    tasks: dict[str, Row]
    groups: dict[str, dict[str, Row]]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "data": self.data,
            "model": self.model.to_json(),
            "teacher": None if self.teacher is None else self.teacher.to_json(),
            "micro": self.micro.to_json(),
            "macro": self.macro.to_json(),
            "tasks": _json(self.tasks),
            "groups": {label: _json(rows) for label, rows in self.groups.items()},
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class Scored:
    """A question's two texts, scored."""

    question: Question
    verdict: Verdict
    teacher: Verdict | None = None
    equal: bool = False


def score(question: Question, text: str, teacher_text: str | None = None) -> Scored:
    """Apply the question's rule to what the model, and the teacher if there is one, said."""
    rule = RULES[question.rule]
    if teacher_text is None:
        return Scored(question, rule(text, question))
    equal = normalised(text) == normalised(teacher_text)
    return Scored(question, rule(text, question), rule(teacher_text, question), equal)


def by_task(scored: Sequence[Scored]) -> dict[str, Row]:
    """A row for every task, in the order of their names."""
    return _rows({item.question.id: item.question.task for item in scored}, scored)


def by_label(scored: Sequence[Scored]) -> dict[str, dict[str, Row]]:
    """For every label of the data set a row for each of its values."""
    labels = dict.fromkeys(name for item in scored for name, _ in item.question.labels)
    return {
        label: _rows({item.question.id: dict(item.question.labels)[label] for item in scored}, scored)
        for label in labels
    }


def micro(scored: Sequence[Scored]) -> Row:
    """The row of all questions together."""
    accuracy = wilson([item.verdict.score for item in scored])
    guessed = sum(item.verdict.guessed for item in scored)
    teacher = [item.teacher for item in scored if item.teacher is not None]
    if not teacher:
        return Row(len(scored), accuracy, guessed)
    ours, theirs = [item.verdict.score for item in scored], [verdict.score for verdict in teacher]
    other = wilson(theirs)
    pairs = list(zip(ours, theirs, strict=True))
    against = Against(
        other,
        paired_difference(ours, theirs),
        accuracy.value / other.value if other.value else None,
        fmean(item.equal for item in scored),
        sum(a > b for a, b in pairs),
        sum(a < b for a, b in pairs),
        sum(verdict.guessed for verdict in teacher),
    )
    return Row(len(scored), accuracy, guessed, against)


def macro(tasks: Mapping[str, Row]) -> Row:
    """The unweighted mean of the tasks' rows; counts are sums."""
    rows = list(tasks.values())
    total = Row(sum(row.n for row in rows), mean_of([row.accuracy for row in rows]), sum(row.guessed for row in rows))
    others = [row.teacher for row in rows if row.teacher is not None]
    if not others:
        return total
    other = mean_of([row.accuracy for row in others])
    against = Against(
        other,
        mean_of([row.difference for row in others]),
        total.accuracy.value / other.value if other.value else None,
        fmean(row.agreement for row in others),
        sum(row.gained for row in others),
        sum(row.lost for row in others),
        sum(row.guessed for row in others),
    )
    return Row(total.n, total.accuracy, total.guessed, against)


def evaluation_view(evaluation: Evaluation) -> RenderableType:
    """Tables for a terminal, in percent: by task, micro (all questions), macro (mean of tasks), by label."""
    teacher = evaluation.teacher is not None
    model, data = evaluation.model, evaluation.data
    title = f"{model.kind} {model.folder} on {data['folder']} ({data['format']})"
    table = _table("task", evaluation.tasks, teacher)
    table.add_section()
    for name, row in (("micro", evaluation.micro), ("macro", evaluation.macro)):
        table.add_row(name, *_cells(row))
    parts: list[RenderableType] = [escape(title), table]
    parts += [_table(label, rows, teacher) for label, rows in evaluation.groups.items()]
    for name, asked in (("model", evaluation.model), ("teacher", evaluation.teacher)):
        if asked is not None:
            resumed = f", {asked.resumed} answers from the predictions file" if asked.resumed else ""
            parts.append(f"{name}: {escape(asked.backend)}, {asked.seconds:.1f} s{resumed}")
    if evaluation.micro.teacher is not None:
        parts.append(f"model and teacher say the same text: {evaluation.micro.teacher.agreement:.1%}")
    return Group(*parts, *(f"note: {escape(note)}" for note in evaluation.notes))


def _table(first: str, rows: Mapping[str, Row], teacher: bool) -> Table:
    table = Table(box=box.SIMPLE, pad_edge=False, collapse_padding=True)
    table.add_column(first, overflow="fold", min_width=min(12, max(map(len, (first, *rows)))))
    columns = ["n", "% right (95%)", *(["teacher", "difference (95%)", "of teacher"] if teacher else [])]
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for name, row in rows.items():
        table.add_row(escape(name), *_cells(row))
    return table


def _cells(row: Row) -> list[str]:
    accuracy = row.accuracy
    cells = [str(row.n), f"{100 * accuracy.value:.1f} ({100 * accuracy.low:.1f}..{100 * accuracy.high:.1f})"]
    if row.teacher is None:
        return cells
    other, difference = row.teacher, row.teacher.difference
    limits = f"{100 * difference.value:+.1f} ({100 * difference.low:+.1f}..{100 * difference.high:+.1f})"
    return [*cells, f"{100 * other.accuracy.value:.1f}", limits, "" if other.share is None else f"{other.share:.1%}"]


def _rows(place: Mapping[str, str], scored: Sequence[Scored]) -> dict[str, Row]:
    parts: dict[str, list[Scored]] = {}
    for item in scored:
        parts.setdefault(place[item.question.id], []).append(item)
    return {name: micro(parts[name]) for name in sorted(parts, key=_natural)}


def _natural(name: str) -> tuple[int, float, str]:
    """Names that begin with a number by its size (15 s, 60 s, 600 s), then the others."""
    first = name.split(" ", 1)[0]
    return (0, float(first), name) if first.isascii() and first.isdigit() else (1, 0.0, name)


def _flat(accuracy: Estimate) -> dict[str, Any]:
    return {"accuracy": accuracy.value, "interval": [accuracy.low, accuracy.high]}


def _json(rows: Mapping[str, Row]) -> dict[str, Any]:
    return {name: row.to_json() for name, row in rows.items()}
