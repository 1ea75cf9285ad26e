"""The tokenizer file, and turning generated ids into text piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from linmu.errors import InputError
from linmu.processing.tokenizer_check import check_tokenizer
from linmu.regular_file import regular_file

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
PANIC = "PanicException"  # of pyo3
MAX_HELD = 3  # a UTF-8 character has at most four bytes, so at most three of them can be waiting


def load_tokenizer(path: Path) -> Tokenizer:
    """Read tokenizer.json, without its padding and truncation; InputError naming the file."""
    if not path.exists():
        raise InputError("the tokenizer file is missing", got=path, expected="tokenizer.json")
    regular_file(path, "the tokenizer")
    with told(f"cannot read the tokenizer {path}", "a tokenizer.json"):
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.no_padding()
        tokenizer.no_truncation()
    check_tokenizer(path)
    return tokenizer


@contextmanager
def told(what: str, expected: str | None = None) -> Iterator[None]:
    """What the tokenizers library raises, as an InputError: its Rust binding has bare exceptions and panics."""
    try:
        yield
    except BaseException as error:
        # a panic is no Exception, and its class cannot be imported
        if isinstance(error, InputError) or not (isinstance(error, Exception) or type(error).__name__ == PANIC):
            raise
        raise InputError(what, got=f"{error!s:.300}", expected=expected) from error


class StreamDecoder:
    """Text of a growing sequence of ids: `push` gives what is new and complete, `flush` the rest.

    Never gives half a UTF-8 character. The pieces joined are the text of all ids
    (byte-fallback tokenizers: as long as the bytes are valid UTF-8).
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]):
        self._decode = decode
        self._ids: list[int] = []
        self._start = 0  # of the window that is decoded again; its first tokens are context for the later ones
        self._read = 0  # ids up to here are wholly in the text that was given
        self._given = 0  # characters given of the text behind `_read`

    def push(self, token_id: int) -> str:
        """Add one id; the newly completed text, often empty."""
        self._ids.append(int(token_id))
        text = self._pending()
        held = min(len(text) - len(text.rstrip(REPLACEMENT)), MAX_HELD)
        ready = text[self._given : len(text) - held]
        self._given += len(ready)
        if text and not held:
            self._start, self._read, self._given = self._read, len(self._ids), 0
        return ready

    def flush(self) -> str:
        """What is still held back: the replacement character of a sequence that never became whole."""
        rest = self._pending()[self._given :]
        self._start = self._read = len(self._ids)
        self._given = 0
        return rest

    def _pending(self) -> str:
        """Text of the ids behind `_read`, decoded in the context of the ones before."""
        context = self._decode(self._ids[self._start : self._read])
        return self._decode(self._ids[self._start :])[len(context) :]


def to_ids(tokenizer: Tokenizer, text: str, add_special_tokens: bool) -> np.ndarray:
    """Token ids [S] int64 of a text."""
    with told("the tokenizer cannot encode the prompt"):
        return np.asarray(tokenizer.encode(text, add_special_tokens=add_special_tokens).ids, np.int64)
