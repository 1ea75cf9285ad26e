"""The tokenizer file, text to ids, and turning generated ids into text piece by piece."""

from __future__ import annotations

import codecs
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

import numpy as np
from tokenizers import Tokenizer

from linmu.errors import InputError, LinmuError
from linmu.files.regular import regular_file
from linmu.processing.tokenizer_check import check_tokenizer

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
PROBE = "Hi, é 世界!"
_DESCRIPTOR = Lock()  # two threads that redirect it at once would not find it again
MAX_HELD = 3  # a UTF-8 character has at most four bytes, so at most three of them can be waiting
Encoded = np.ndarray  # [S] int64

# every byte that belongs to no character is a replacement character of its own, as in the tokenizers library
_BYTE_ERRORS = "linmu.each-byte"
codecs.register_error(
    _BYTE_ERRORS,
    lambda error: (REPLACEMENT * (error.end - error.start), error.end),  # type: ignore[attr-defined]
)


@contextmanager
def rust_calls(what: str, expected: str | None = None) -> Iterator[None]:
    """Turn what the tokenizers library raises into InputError: bare Exceptions, and panics, which are not even that."""
    try:
        yield
    except LinmuError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise InputError(f"{what} fails", got=f"{type(error).__name__}: {error}"[:300], expected=expected) from error


@contextmanager
def _without_panic_messages() -> Iterator[None]:
    """Keep what a panic writes on descriptor 2 to ourselves: the error raised says it; pass on everything else."""
    with _DESCRIPTOR, tempfile.TemporaryFile() as file:
        try:
            saved = os.dup(2)
        except OSError:  # nobody listens
            yield
            return
        os.dup2(file.fileno(), 2)
        try:
            yield
            file.seek(0)
            os.write(saved, file.read())
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def load_tokenizer(path: Path) -> Tokenizer:
    """Read tokenizer.json, without its padding and truncation; InputError naming the file."""
    if not path.exists():
        raise InputError("the tokenizer file is missing", got=path, expected="tokenizer.json")
    regular_file(path, "the tokenizer")
    with rust_calls(f"reading the tokenizer {path}", expected="a tokenizer.json"), _without_panic_messages():
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        check_tokenizer(path)
        tokenizer.decode(tokenizer.encode(PROBE).ids)  # what would fail at the first prompt fails here
    return tokenizer


def decode(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Text of ids without special tokens, as the tokenizer gives it."""
    with rust_calls("turning tokens into text"):
        text: str = tokenizer.decode(list(ids), skip_special_tokens=True)
    return text


def byte_tokens(tokenizer: Tokenizer) -> dict[int, int]:
    """Ids that stand for single bytes (`<0x0A>`), where the tokenizer falls back to bytes: id -> byte."""
    with rust_calls("the tokenizer"):
        decoder = tokenizer.decoder
        if decoder is None or b'"ByteFallback"' not in decoder.__getstate__():
            return {}
        bytes_by_id = {tokenizer.token_to_id(f"<0x{byte:02X}>"): byte for byte in range(256)}
    return {token: byte for token, byte in bytes_by_id.items() if token is not None}


class StreamDecoder:
    """Text of a growing sequence of ids: `push` gives what is new and complete, `flush` the rest.

    Never gives half a UTF-8 character. The pieces joined are the text of all ids. bytes_of: ids that stand for single
    bytes (`byte_tokens`); they are put together here, because the tokenizers library makes a whole run of them
    unreadable while its last character is not complete.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], bytes_of: Mapping[int, int] | None = None):
        self._decode, self._bytes_of = decode, bytes_of or {}
        self._utf8 = codecs.getincrementaldecoder("utf-8")(_BYTE_ERRORS)
        self._ids: list[int] = []
        self._start = 0  # of the window that is decoded again; its first tokens are context for the later ones
        self._read = 0  # ids up to here are wholly in the text that was given
        self._given = 0  # characters given of the text behind `_read`

    def push(self, token_id: int) -> str:
        """Add one id; the newly completed text, often empty."""
        token_id = int(token_id)
        if token_id in self._bytes_of:
            ready = self._rest()
            self._ids.append(token_id)
            self._read = len(self._ids)  # the window's start stays: a run of bytes is decoded from its beginning
            return ready + self._utf8.decode(bytes([self._bytes_of[token_id]]))
        ended = self._utf8.decode(b"", True)
        self._ids.append(token_id)
        text = self._pending()
        held = min(len(text) - len(text.rstrip(REPLACEMENT)), MAX_HELD)
        ready = text[self._given : len(text) - held]
        self._given += len(ready)
        if text and not held:
            self._start, self._read, self._given = self._read, len(self._ids), 0
        return ended + ready

    def flush(self) -> str:
        """What is still held back: the replacement character of a sequence that never became whole."""
        rest = self._rest() + self._utf8.decode(b"", True)
        self._start = self._read = len(self._ids)
        return rest

    def _rest(self) -> str:
        """Text held back of tokens that are no bytes."""
        rest = self._pending()[self._given :] if len(self._ids) > self._read else ""
        self._given = 0
        return rest

    def _pending(self) -> str:
        """Text of the ids behind `_read`, decoded in the context of the ones before."""
        context = self._decode(self._ids[self._start : self._read])
        return self._decode(self._ids[self._start :])[len(context) :]


def encode(tokenizer: Tokenizer, text: str, add_special_tokens: bool, context: str = "") -> Encoded | None:
    """Token ids [S] int64 of a text that follows `context`; None when a token reaches from the one into the other."""
    with rust_calls("tokenizing the prompt"):
        ids = np.asarray(tokenizer.encode(context + text, add_special_tokens=add_special_tokens).ids, np.int64)
        if not context:
            return ids
        before = tokenizer.encode(context, add_special_tokens=add_special_tokens).ids
    return ids[len(before) :] if ids[: len(before)].tolist() == before else None


def to_ids(tokenizer: Tokenizer, text: str, add_special_tokens: bool) -> Encoded:
    """Token ids [S] int64 of a text."""
    ids = encode(tokenizer, text, add_special_tokens)
    assert ids is not None
    return ids
