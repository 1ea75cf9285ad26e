"""Choosing a token from logits: greedy, or drawn with a seed; penalties, truncation, log probabilities (numpy).

The order is that of transformers' generate(): logit_bias, repetition penalty (then, as in vLLM, frequency and presence
penalty), what a constraint allows, temperature, top_k, top_p, min_p. Greedy needs nothing behind the constraint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

import numpy as np

from linmu.errors import InputError
from linmu.runtimes.constraints import Constraint
from linmu.runtimes.logits import (
    add_bias,
    draw,
    largest,
    log_probabilities,
    penalise_counts,
    penalise_repetition,
    truncate,
    weights_of,
)

MOST_LOGPROBS = 20  # alternatives told beside a token, as in OpenAI's API
# Name -> lowest and highest value: OpenAI's; the repetition penalty's keep logits finite.
RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "repetition_penalty": (0.01, 100),
}
BIAS = 100.0  # of a token, at most, either way
SEEDS = 1 << 63  # from -SEEDS up to SEEDS - 1


@dataclass(frozen=True)
class Choice:
    """A chosen token; with logprobs asked for, what the model itself thought of it.

    logprob: natural logarithm of its probability before penalties, constraint, temperature and truncation, in float64;
    top: the likeliest tokens with theirs, the likeliest first. None and () where they were not asked for.
    """

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; greedy unless told otherwise. Raises InputError naming the field that is out of range.

    temperature: 0 = greedy, at most 2. top_p: draw from the smallest set of likeliest tokens of that probability;
    top_k: from the k likeliest (0 or -1: all); min_p: from those with this share of the likeliest one's probability;
    seed: makes draws repeatable. presence_penalty, frequency_penalty: taken from logits of generated tokens, once and
    for every time; repetition_penalty: logits of tokens in prompt and answer are divided (negative ones multiplied) by
    it; logit_bias: token id -> what is added. logprobs: how many alternatives (0..20) are told with every token; None:
    nothing is told.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    logprobs: int | None = None

    def __post_init__(self) -> None:
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if not _is_number(value) or not low <= value <= high:
                raise InputError(name, got=_shown(value), expected=f"a number from {low:g} to {high:g}")
        if not _is_integer(self.top_k) or self.top_k < -1:
            raise InputError("top_k", got=_shown(self.top_k), expected="an integer from 1, or 0 for all tokens")
        if self.seed is not None and not (_is_integer(self.seed) and -SEEDS <= self.seed < SEEDS):
            raise InputError("seed", got=_shown(self.seed), expected="an integer of 64 bits, or none")
        if self.logprobs is not None and not (_is_integer(self.logprobs) and 0 <= self.logprobs <= MOST_LOGPROBS):
            raise InputError("logprobs", got=_shown(self.logprobs), expected=f"an integer from 0 to {MOST_LOGPROBS}")
        object.__setattr__(self, "logit_bias", _checked_bias(self.logit_bias))

    def check_vocabulary(self, size: int) -> None:
        """Raise InputError for a bias of a token that a model of `size` tokens does not have."""
        if beyond := [token for token in self.logit_bias if token >= size]:
            raise InputError("logit_bias", got=f"token {beyond[0]}", expected=f"token ids from 0 to {size - 1}")

    def chooser(self, prompt_ids: np.ndarray, constraint: Constraint | None = None) -> Chooser:
        """What chooses the tokens of one answer to a prompt of ids [S]."""
        return Chooser(self, prompt_ids, constraint)


class Chooser:
    """Chooses one answer's tokens in turn; remembers them as far as penalties need it."""

    def __init__(self, sampling: Sampling, prompt_ids: np.ndarray, constraint: Constraint | None = None):
        self._sampling, self._constraint = sampling, constraint
        self._generator = np.random.default_rng(None if sampling.seed is None else sampling.seed % (2 * SEEDS))
        self._repeats = sampling.repetition_penalty != 1
        self._counted = bool(sampling.frequency_penalty or sampling.presence_penalty)
        self._seen = {int(token) for token in np.unique(prompt_ids)} if self._repeats else set()
        self._counts: dict[int, int] = {}

    def choose(self, logits: np.ndarray) -> Choice:
        """Choose from logits [V] float32, which stay as they are; raises InputError when they are not finite.

        Logits of -inf are tokens that are never drawn.
        """
        if not np.isfinite(logits[logits.argmax()]):  # NaN counts as the largest
            raise InputError("the graph gave logits that are not finite", fix="run `linmu verify` on the bundle")
        scores = self._adjusted(logits)
        if self._constraint is not None:
            scores = self._constraint.allowed(scores)
            if scores.max() == -np.inf:
                raise InputError("no token of the model may come next in the form that is asked for")
        token = self._pick(scores)
        if self._constraint is not None:
            self._constraint.accept(token)
        self._remember(token)
        return self._told(token, logits)

    def _adjusted(self, logits: np.ndarray) -> np.ndarray:
        """Logits with bias and penalties; the very same array where there are none."""
        sampling = self._sampling
        if not (sampling.logit_bias or self._repeats or self._counted):
            return logits
        scores = logits.astype(np.float64)
        if sampling.logit_bias:
            add_bias(scores, sampling.logit_bias)
        if self._repeats:
            penalise_repetition(scores, self._seen, sampling.repetition_penalty)
        if self._counted:
            penalise_counts(scores, self._counts, sampling.frequency_penalty, sampling.presence_penalty)
        return scores

    def _pick(self, scores: np.ndarray) -> int:
        sampling = self._sampling
        if sampling.temperature == 0:
            return int(scores.argmax())
        weights = weights_of(scores.astype(np.float64), sampling.temperature)
        return draw(truncate(weights, sampling.top_k, sampling.top_p, sampling.min_p), self._generator.random())

    def _remember(self, token: int) -> None:
        if self._repeats:
            self._seen.add(token)
        if self._counted:
            self._counts[token] = self._counts.get(token, 0) + 1

    def _told(self, token: int, logits: np.ndarray) -> Choice:
        count = self._sampling.logprobs
        if count is None:
            return Choice(token)
        found = log_probabilities(logits)
        ids = largest(found, count)[:count] if count else ()
        return Choice(token, float(found[token]), tuple((int(i), float(found[i])) for i in ids))


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _checked_bias(bias: Any) -> dict[int, float]:
    if not isinstance(bias, Mapping):
        raise InputError("logit_bias", got=_shown(bias), expected="a mapping of token ids to numbers")
    for token, value in bias.items():
        if not _is_integer(token) or token < 0:
            raise InputError("logit_bias", got=f"the key {_shown(token)}", expected="token ids")
        if not _is_number(value) or not -BIAS <= value <= BIAS:
            raise InputError(
                "logit_bias", got=f"{_shown(value)} for token {token}", expected=f"numbers from -{BIAS:g} to {BIAS:g}"
            )
    return {int(token): float(value) for token, value in bias.items()}


def _shown(value: Any) -> str:
    return repr(value)[:60]
