"""`linmu eval`: read questions, let the model and its teacher answer them, score, report."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from linmu.errors import InputError
from linmu.evaluation.answerers import Answerer, Engine, open_answerer
from linmu.evaluation.benchmarks import detect, find_format, read_questions
from linmu.evaluation.predictions import Prediction, Predictions, asked
from linmu.evaluation.questions import Question, check, choose
from linmu.evaluation.report import Asked, Evaluation, by_label, by_task, macro, micro, score

Progress = Callable[[str, int, int], None]  # (who, answers so far, questions)


@dataclass(frozen=True)
class Plan:
    """What is asked: format and split of the data (None: the format's own), subtitles, a seeded sample, answer length.

    ignore_case: exact match takes capitals and small letters alike (data folders only).
    """

    format: str = "auto"
    split: str | None = None
    subtitles: bool = False
    ignore_case: bool = False
    limit: int | None = None
    seed: int = 0
    max_new_tokens: int | None = None


def evaluate(
    model: Path | str,
    data: Path | str,
    *,
    teacher: Path | str | None = None,
    plan: Plan | None = None,
    engine: Engine | None = None,
    predictions: Path | str | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Accuracy by task of a bundle, student or teacher, with a teacher beside it on the same questions.

    `engine` says how both are run; its backend is for `model` (a teacher takes the best there is). progress(who, done,
    total) counts answers. Raises InputError for models, data or options that cannot be used, and MissingComponentError.
    """
    plan, engine = plan or Plan(), engine or Engine()
    _check_plan(plan, engine)
    model, data, teacher = Path(model), Path(data), None if teacher is None else Path(teacher)
    name = detect(data) if plan.format == "auto" else plan.format
    everything = read_questions(data, name, split=plan.split, subtitles=plan.subtitles, ignore_case=plan.ignore_case)
    questions = choose(everything, plan.limit, plan.seed)
    check(questions)
    room = plan.max_new_tokens or find_format(name).max_new_tokens
    answerer = open_answerer(model, engine)
    kept = Predictions(None if predictions is None else Path(predictions))
    asked_model, answers = _ask(answerer, model, "model", questions, room, kept, progress)
    notes = []
    other, replies = None, None
    if teacher is not None:
        second = open_answerer(teacher, Engine("auto", engine.threads, engine.device, engine.dtype, engine.batch_size))
        if second.processor.settings != answerer.processor.settings:
            notes.append("the model and its teacher prepare prompts or pictures in different ways")
        other, replies = _ask(second, teacher, "teacher", questions, room, kept, progress)
    scored = [
        score(question, answers[question.id].text, None if replies is None else replies[question.id].text)
        for question in questions
    ]
    tasks = by_task(scored)
    facts = {
        "folder": str(data),
        "format": name,
        "split": plan.split or find_format(name).split,
        "subtitles": plan.subtitles,
        "ignore_case": plan.ignore_case,
        "questions": len(everything),
        "asked": len(questions),
        "seed": plan.seed,
        "max_new_tokens": room,
    }
    notes += _notes(asked_model, other, room)
    return Evaluation(facts, asked_model, other, micro(scored), macro(tasks), tasks, by_label(scored), tuple(notes))


def _check_plan(plan: Plan, engine: Engine) -> None:
    counts = {"limit": plan.limit, "max_new_tokens": plan.max_new_tokens, "batch_size": engine.batch_size}
    for name, count in counts.items():
        if count is not None and count < 1:
            raise InputError(name, got=count, expected="at least 1")


def _ask(
    answerer: Answerer,
    folder: Path,
    who: str,
    questions: Sequence[Question],
    room: int,
    kept: Predictions,
    progress: Progress | None,
) -> tuple[Asked, dict[str, Prediction]]:
    """Every question's prediction by id, old ones from the file; the model is closed afterwards."""
    started = time.perf_counter()
    known = {question.id: kept.get(answerer.identity, question, room) for question in questions}
    predictions = {name: prediction for name, prediction in known.items() if prediction is not None}
    resumed = len(predictions)
    try:
        for question, answer in answerer.answers([item for item in questions if item.id not in predictions], room):
            prediction = Prediction(
                answerer.identity, question.id, asked(question, room), answer.text, answer.tokens, answer.stopped
            )
            kept.add(prediction)
            predictions[question.id] = prediction
            if progress is not None:
                progress(who, len(predictions), len(questions))
    finally:
        answerer.close()
    return Asked(
        answerer.kind,
        str(folder),
        answerer.backend,
        answerer.identity,
        resumed,
        time.perf_counter() - started,
        fmean(prediction.tokens for prediction in predictions.values()),
        sum(not item.stopped for item in predictions.values()),
    ), predictions


def _notes(model: Asked, teacher: Asked | None, room: int) -> list[str]:
    notes = []
    for name, result in (("model", model), ("teacher", teacher)):
        if result is not None and result.unfinished:
            notes.append(
                f"{result.unfinished} answers of the {name} were cut off after {room} tokens (--max-new-tokens)"
            )
    return notes
