"""Models that answer questions: a bundle on any of its backends, or a student's or teacher's folder in torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from linmu.errors import InputError
from linmu.evaluation.questions import Question
from linmu.formats.bundle import file_sha256
from linmu.formats.manifest_object import MANIFEST_NAME
from linmu.formats.model_files import find_gguf, is_student, read_config, read_model_folder
from linmu.processing import Processor
from linmu.runtimes.session import load
from linmu.system.components import require

BATCH_SIZE = 16
IN_TORCH = "linmu.model.answerer"  # imported by name, as backends are: what runs on a device imports no torch


@dataclass(frozen=True)
class Answer:
    """A generated text, its tokens (the end token included) and whether it ended by itself."""

    text: str
    tokens: int
    stopped: bool


@dataclass(frozen=True)
class Engine:
    """How a model is run: backend and threads as everywhere; device, dtype and batch size of torch folders only."""

    backend: str = "auto"
    threads: int | None = None
    device: str = "auto"
    dtype: str = "auto"
    batch_size: int = BATCH_SIZE


class Answerer(Protocol):
    """A model that answers greedily. `identity` names weights, processor, backend and precision."""

    kind: str
    backend: str
    identity: str
    processor: Processor

    def answers(self, questions: Sequence[Question], max_new_tokens: int) -> Iterator[tuple[Question, Answer]]:
        """Every question with its answer, in any order; raises InputError naming a question it cannot take."""
        ...

    def close(self) -> None:
        """Free the weights."""
        ...


def open_answerer(folder: Path, engine: Engine) -> Answerer:
    """The model of a bundle, student or teacher folder; weights may be loaded on the first question only.

    Raises InputError for anything else and for a backend it does not have, MissingComponentError without torch where
    torch is needed.
    """
    folder = Path(folder)
    if (folder / MANIFEST_NAME).is_file():
        return SessionAnswerer(folder, engine)
    if (folder / "config.json").is_file():
        kind = "student" if is_student(read_config(folder)) else "teacher"
    elif folder.is_dir() and find_gguf(folder) is not None:
        kind = "teacher"
    else:
        raise InputError(
            f"{folder} is no bundle, student or teacher",
            expected=f"a folder with {MANIFEST_NAME} or config.json",
            fix="make one with `linmu convert` or `linmu export`",
        )
    if engine.backend not in ("auto", "torch"):
        raise InputError(
            f"backend {engine.backend!r}",
            got=f"the {kind} folder {folder}",
            expected="auto or torch",
            fix="export it: other backends run bundles",
        )
    if kind == "teacher":
        read_model_folder(folder)  # a wrong folder is reported before torch takes its seconds to load
    for module in ("torch", "transformers"):
        require(module, needed_for=f"`linmu eval` of a {kind} folder", extra="convert")
    answerer: Answerer = import_module(IN_TORCH).TorchAnswerer(folder, kind, engine)
    return answerer


class SessionAnswerer:
    """A bundle in one of its backends, a question at a time, as `linmu run` would answer it."""

    kind = "bundle"

    def __init__(self, folder: Path, engine: Engine):
        for name in ("device", "dtype"):
            if getattr(engine, name) != "auto":
                raise InputError(
                    f"--{name} for the bundle {folder}",
                    got=getattr(engine, name),
                    expected="auto",
                    fix=f"only student and teacher folders take --{name}",
                )
        self.session = load(folder, backend=engine.backend, threads=engine.threads)
        self.processor = self.session.processor
        self.backend = self.session.runner.backend
        self.identity = identity(self.kind, file_sha256(folder / MANIFEST_NAME), self.backend)

    def answers(self, questions: Sequence[Question], max_new_tokens: int) -> Iterator[tuple[Question, Answer]]:
        """Every question with its answer, in their order."""
        for question in questions:
            with naming(question):
                options: dict[str, Any] = {} if question.video_fps is None else {"video_fps": question.video_fps}
                self.session.reset()
                generation = self.session.generate(
                    question.prompt, question.pictures(), question.video, max_new_tokens=max_new_tokens, **options
                )
            yield question, Answer(generation.text, len(generation.token_ids), generation.finish_reason == "stop")

    def close(self) -> None:
        """Free graphs and weights."""
        self.session.close()


def identity(*parts: str) -> str:
    """A short hash over what makes a model's answers what they are."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


@contextmanager
def naming(question: Question) -> Iterator[None]:
    """Put the question's id in front of an InputError."""
    try:
        yield
    except InputError as error:
        what = f"question {question.id!r}: {error.what}"
        raise InputError(what, got=error.got, expected=error.expected, fix=error.fix) from error
