"""What a single token stands for, as log probabilities show it: its text, and its bytes, which may be half a letter."""

from __future__ import annotations

from functools import cached_property

from linmu.processing import Processor
from linmu.processing.tokens import byte_tokens, rust_calls

SPACE = "\u2581"  # how SentencePiece writes one


def _byte_letters() -> dict[str, int]:
    """Letter -> byte of byte-level tokenizers (GPT-2): printable ones stand for themselves, the others follow."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}


class TokenTexts:
    """Texts of a processor's tokens."""

    def __init__(self, processor: Processor):
        self._tokenizer = processor.tokenizer
        self._ends = frozenset(processor.eos_token_ids)

    def ends(self, token: int) -> bool:
        """Whether a token ends an answer."""
        return token in self._ends

    def of(self, token: int) -> tuple[str, list[int]]:
        """(text, bytes) of a token; half a letter is U+FFFD as text, a token without a text is ""."""
        data = self._bytes(token)
        return data.decode("utf-8", "replace"), list(data)

    def _bytes(self, token: int) -> bytes:
        with rust_calls("the tokenizer"):
            name = self._tokenizer.id_to_token(token)
        if name is None:  # a row of the embedding that no token has
            return b""
        if token in self._fallback:
            return bytes([self._fallback[token]])
        if token in self._added:
            return str(name).encode()
        if self._byte_level and all(letter in self._letters for letter in name):
            return bytes(self._letters[letter] for letter in name)
        return str(name).replace(SPACE, " ").encode()

    @cached_property
    def _fallback(self) -> dict[int, int]:
        return byte_tokens(self._tokenizer)

    @cached_property
    def _added(self) -> frozenset[int]:
        with rust_calls("the tokenizer"):
            return frozenset(self._tokenizer.get_added_tokens_decoder())

    @cached_property
    def _letters(self) -> dict[str, int]:
        return _byte_letters()

    @cached_property
    def _byte_level(self) -> bool:
        with rust_calls("the tokenizer"):
            decoder = self._tokenizer.decoder
            return decoder is not None and b'"ByteLevel"' in decoder.__getstate__()
