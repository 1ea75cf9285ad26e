"""What tests of sessions share."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np

from linmu.runtimes.sampling import Choice, Sampling
from tests.tiny import tiny_image


def media(family: str) -> dict:
    return {} if family == "llama" else {"images": [tiny_image(1), tiny_image(2)]}


def gap(actual, expected) -> float:
    return float(np.abs(actual - expected).max() / expected.std())


class Scripted(Sampling):
    """Says what it is told, whatever the model thinks."""

    def __init__(self, script):
        super().__init__()
        object.__setattr__(self, "script", script)

    def chooser(self, prompt_ids, constraint=None):
        tokens = iter(self.script)
        return SimpleNamespace(choose=lambda logits: Choice(next(tokens)))


def says(session, text: str, ended: bool = True) -> dict:
    """Options of an answer with this text, and with the template's end of turn behind it."""
    tokenizer = session.processor.tokenizer
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    end = tokenizer.token_to_id("<|im_end|>")
    tokens = replace(session.processor.settings.tokens, eos_token_ids=(end,))
    settings = replace(session.processor.settings, tokens=tokens)
    session.processor = replace(session.processor, settings=settings)
    ids += [end] * ended
    return {"sampling": Scripted(ids), "max_new_tokens": len(ids)}
