"""What single tokens are in a text: bytes, since a character may lie across several tokens."""

from __future__ import annotations

import re
from functools import cached_property

from tokenizers import Tokenizer

from linmu.processing.tokens import rust_calls

_SPACE = "\u2581"  # SentencePiece's sign for a space


class TokenBytes:
    """The bytes of a tokenizer's tokens, one by one."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer

    def of(self, token: int) -> bytes:
        """Bytes that a token adds to a text; the name of an added or control token; b"" for an id that no token has."""
        with rust_calls("the tokenizer"):
            name = self._tokenizer.id_to_token(token)
        if name is None:
            return b""
        if token in self._added:
            return name.encode()
        if b'"ByteLevel"' in self._decoder:
            return b"".join(_BYTES.get(char, char.encode()) for char in name)
        if b'"ByteFallback"' in self._decoder and re.fullmatch("<0x[0-9A-F]{2}>", name):
            return bytes([int(name[3:5], 16)])
        return name.replace(_SPACE, " ").encode()

    @cached_property
    def _added(self) -> set[int]:
        return set(self._tokenizer.get_added_tokens_decoder())

    @cached_property
    def _decoder(self) -> bytes:
        decoder = self._tokenizer.decoder
        return b"" if decoder is None else decoder.__getstate__()


def _byte_characters() -> dict[str, bytes]:
    """The character that byte-level tokenizers write for every byte (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    codes = {byte: byte for byte in printable} | {byte: 256 + i for i, byte in enumerate(others)}
    return {chr(code): bytes([byte]) for byte, code in codes.items()}


_BYTES = _byte_characters()
