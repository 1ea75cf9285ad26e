"""Choosing a token from logits: greedy, or temperature and top-p with a seed (numpy)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from linmu.errors import InputError


@dataclass(frozen=True)
class Sampling:
    """temperature 0 = greedy; top_p keeps the smallest set of tokens of that probability; seed makes it repeatable."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise InputError("temperature", got=self.temperature, expected="0 or more")
        if not 0 < self.top_p <= 1:
            raise InputError("top_p", got=self.top_p, expected="above 0, at most 1")

    def generator(self) -> np.random.Generator:
        """A fresh random generator for one answer."""
        return np.random.default_rng(self.seed)

    def choose(self, logits: np.ndarray, generator: np.random.Generator) -> int:
        """A token id from logits [V]; raises InputError when they are not finite (the graph is broken)."""
        best = int(logits.argmax())
        if not np.isfinite(logits[best]):
            raise InputError("the graph gave logits that are not finite", fix="run `linmu verify` on the bundle")
        if self.temperature == 0:
            return best
        scaled = (logits.astype(np.float64) - logits[best]) / self.temperature
        weights = np.exp(scaled)
        weights /= weights.sum()
        if self.top_p < 1:
            order = np.argsort(-weights)
            kept = order[: int(np.searchsorted(np.cumsum(weights[order]), self.top_p)) + 1]
            chosen = weights[kept] / weights[kept].sum()
            return int(generator.choice(kept, p=chosen))
        return int(generator.choice(len(weights), p=weights))
