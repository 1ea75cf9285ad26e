"""What is done to logits before a token is chosen: biases, penalties, truncation; and what they say about tokens.

Scores and weights are float64 [V]. Weights are probabilities times a constant: the likeliest token has 1.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

FIRST_SEARCH = 256  # tokens looked at first for a nucleus; most nuclei are smaller


def add_bias(scores: np.ndarray, bias: Mapping[int, float]) -> None:
    """Add to the scores of tokens, in place."""
    scores[list(bias)] += list(bias.values())


def penalise_repetition(scores: np.ndarray, seen: Collection[int], penalty: float) -> None:
    """Divide positive scores of `seen` tokens by the penalty and multiply negative ones by it, in place."""
    ids = np.fromiter(seen, np.int64, len(seen))
    found = scores[ids]
    scores[ids] = np.where(found > 0, found / penalty, found * penalty)


def penalise_counts(scores: np.ndarray, counts: Mapping[int, int], frequency: float, presence: float) -> None:
    """Take `frequency` for every time that a token was generated, and `presence` once, in place."""
    ids = np.fromiter(counts, np.int64, len(counts))
    scores[ids] -= frequency * np.fromiter(counts.values(), np.float64, len(counts)) + presence


def weights_of(scores: np.ndarray, temperature: float) -> np.ndarray:
    """Weights of scores at a temperature above 0; scores of -inf get 0."""
    with np.errstate(over="ignore"):  # a tiny temperature: everything but the likeliest becomes 0
        weights: np.ndarray = np.exp((scores - scores.max()) / temperature)
    return weights


def largest(values: np.ndarray, count: int) -> np.ndarray:
    """Ids [n] of the `count` largest values and of what equals the last of them, the largest first; equals by id."""
    if count < len(values):
        ids = np.flatnonzero(values >= np.partition(values, len(values) - count)[len(values) - count])
    else:
        ids = np.arange(len(values))
    return ids[np.argsort(-values[ids], kind="stable")]


def nucleus(weights: np.ndarray, top_p: float) -> np.ndarray:
    """Ids [n] of the smallest set of likeliest tokens that has the share `top_p` of all weight; at least one."""
    wanted, count = top_p * weights.sum(), FIRST_SEARCH
    while True:
        ids = largest(weights, count)
        sums = np.cumsum(weights[ids])
        if sums[-1] >= wanted or len(ids) == len(weights):
            return ids[: int(np.searchsorted(sums, wanted)) + 1]
        count *= 8


def truncate(weights: np.ndarray, top_k: int, top_p: float, min_p: float) -> np.ndarray:
    """Weights of the tokens that may still be drawn, 0 for the others: top_k, of these top_p, of these min_p.

    top_k 0: all; tokens that equal the last one of top_k stay. min_p is a share of the likeliest token's weight.
    """
    if 0 < top_k < len(weights):
        weights = _only(weights, largest(weights, top_k))
    if top_p < 1:
        weights = _only(weights, nucleus(weights, top_p))
    return np.where(weights >= min_p, weights, 0) if min_p > 0 else weights


def _only(weights: np.ndarray, ids: np.ndarray) -> np.ndarray:
    left = np.zeros_like(weights)
    left[ids] = weights[ids]
    return left


def draw(weights: np.ndarray, number: float) -> int:
    """The token at `number` (0 up to 1) of the weights' sum; never one of weight 0."""
    sums = np.cumsum(weights)
    return int(np.searchsorted(sums, number * sums[-1], side="right"))


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    """Natural logarithms [V] float64 of the probabilities that logits [V] stand for."""
    shifted = logits.astype(np.float64) - float(logits.max())
    found: np.ndarray = shifted - np.log(np.exp(shifted).sum())
    return found
