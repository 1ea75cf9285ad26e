"""Generated texts kept in a JSON Lines file, so that a stopped evaluation goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from linmu.errors import InputError
from linmu.evaluation.questions import Question
from linmu.files.atomic import check_file_target, write_bytes

HEADER = {"format": "linmu-predictions", "format_version": 1}


@dataclass(frozen=True)
class Prediction:
    """What a model said to a question.

    model: the identity of model, processor, backend and precision; question: `Question.digest` and the most tokens
    an answer may have; tokens: generated ones, the end token included; stopped: whether it ended by itself.
    """

    model: str
    id: str
    question: str
    text: str
    tokens: int
    stopped: bool


class Predictions:
    """Predictions by model and question, in memory and, with a path, in a file that grows line by line.

    A last line that a killed process left unfinished is dropped. Raises InputError when the file exists and is
    something else.
    """

    def __init__(self, path: Path | None = None):
        self.path = path
        self._found: dict[tuple[str, str, str], Prediction] = {}
        if path is None:
            return
        check_file_target(path)
        if path.exists():
            self._load(path)
        else:
            write_bytes(path, _line(HEADER))

    def get(self, model: str, question: Question, max_new_tokens: int) -> Prediction | None:
        """The prediction of this model for exactly this question, or None."""
        return self._found.get((model, question.id, asked(question, max_new_tokens)))

    def add(self, prediction: Prediction) -> None:
        """Keep a prediction, on disk at once; it replaces an earlier one of the same model and question."""
        self._keep(prediction)
        if self.path is not None:
            with self.path.open("ab") as file:
                file.write(_line(asdict(prediction)))

    def _keep(self, prediction: Prediction) -> None:
        self._found[prediction.model, prediction.id, prediction.question] = prediction

    def _load(self, path: Path) -> None:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InputError(f"cannot read {path}", got=error.strerror) from error
        whole, _, rest = content.rpartition(b"\n")
        lines = _parsed(whole, path)
        if next(lines, None) != HEADER:
            raise InputError(
                f"{path} holds no predictions",
                got="another file",
                expected="a file that linmu eval wrote",
                fix="choose another name",
            )
        for number, data in enumerate(lines, 2):
            try:
                prediction = Prediction(**data)
            except TypeError as error:
                raise InputError(f"{path}, line {number}: no prediction", got=error) from error
            self._keep(prediction)
        if rest:
            write_bytes(path, whole + b"\n")


def asked(question: Question, max_new_tokens: int) -> str:
    """What identifies a question together with the room its answer had."""
    return f"{question.digest()[:32]}/{max_new_tokens}"


def _parsed(content: bytes, path: Path) -> Iterator[Any]:
    for number, line in enumerate(content.split(b"\n"), 1):
        try:
            yield json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}, line {number}: not JSON", got=error, fix="choose another file name") from error


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode() + b"\n"
