"""Answers of /v1/chat/completions and of /v1/completions, whole and in pieces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from linmu.runtimes.answer import Piece
from linmu.runtimes.sampling import Choice
from linmu.serving.api.answers import Answer
from linmu.serving.api.token_texts import TokenTexts

LEAST = -9999.0  # OpenAI's number for what cannot be


class ChatForm:
    """`chat.completion` and its chunks; texts: where log probabilities are asked for."""

    object, chunk_object, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl-"

    def __init__(self, texts: TokenTexts | None = None):
        self._texts = texts

    def choice(self, index: int, answer: Answer) -> dict[str, Any]:
        """See Form."""
        message = {"role": "assistant", "content": answer.text, "refusal": None}
        probabilities = self._logprobs(answer.pieces)
        return {"index": index, "message": message, "logprobs": probabilities, "finish_reason": answer.finish_reason}

    def first(self, index: int) -> dict[str, Any] | None:
        """See Form."""
        delta = {"role": "assistant", "content": ""}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def delta(self, index: int, piece: Piece, before: Answer) -> dict[str, Any] | None:
        """See Form."""
        if not piece.text and piece.finish_reason is None and self._texts is None:
            return None
        delta = {"content": piece.text} if piece.text else {}
        reason, probabilities = piece.finish_reason, self._logprobs([piece])
        return {"index": index, "delta": delta, "logprobs": probabilities, "finish_reason": reason}

    def _logprobs(self, pieces: list[Piece]) -> dict[str, Any] | None:
        texts = self._texts
        if texts is None:
            return None
        content = []
        for choice in chosen(pieces, texts):
            top = [_entry(token, logprob, texts) for token, logprob in choice.top]
            content.append({**_entry(choice.token, choice.logprob, texts), "top_logprobs": top})
        return {"content": content, "refusal": None}


@dataclass(frozen=True)
class TextForm:
    """`text_completion`; texts: where log probabilities are asked for."""

    texts: TokenTexts | None = None
    object = chunk_object = "text_completion"
    prefix = "cmpl-"

    def choice(self, index: int, answer: Answer) -> dict[str, Any]:
        """See Form."""
        probabilities = self._logprobs(answer.pieces, 0)
        return {"index": index, "text": answer.text, "logprobs": probabilities, "finish_reason": answer.finish_reason}

    def first(self, index: int) -> dict[str, Any] | None:
        """See Form."""
        return None

    def delta(self, index: int, piece: Piece, before: Answer) -> dict[str, Any] | None:
        """See Form."""
        if not piece.text and piece.finish_reason is None and self.texts is None:
            return None
        texts = self.texts
        start = 0 if texts is None else sum(len(texts.of(c.token)[0]) for c in chosen(before.pieces, texts))
        probabilities = self._logprobs([piece], start)
        return {"index": index, "text": piece.text, "logprobs": probabilities, "finish_reason": piece.finish_reason}

    def _logprobs(self, pieces: list[Piece], start: int) -> dict[str, Any] | None:
        if self.texts is None:
            return None
        found = chosen(pieces, self.texts)
        texts = [self.texts.of(choice.token)[0] for choice in found]
        offsets = [start + sum(map(len, texts[:i])) for i in range(len(texts))]
        return {
            "tokens": texts,
            "token_logprobs": [_finite(choice.logprob) for choice in found],
            "top_logprobs": [{self.texts.of(t)[0]: _finite(p) for t, p in choice.top} for choice in found],
            "text_offset": offsets,
        }


def chosen(pieces: list[Piece], texts: TokenTexts) -> list[Choice]:
    """What was chosen for every token but the one that ends an answer, which has no text."""
    found = [piece.logprobs for piece in pieces if piece.logprobs is not None]
    return [choice for choice in found if not texts.ends(choice.token)]


def _entry(token: int, logprob: float | None, texts: TokenTexts) -> dict[str, Any]:
    text, data = texts.of(token)
    return {"token": text, "logprob": _finite(logprob), "bytes": data}


def _finite(logprob: float | None) -> float:
    return LEAST if logprob is None else max(logprob, LEAST)
