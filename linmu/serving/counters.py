"""What an engine counts, for metrics."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
ROWS = (1, 2, 4, 8, 16, 32, 64)


class Histogram:
    """Counts of values up to each bound; the last count is of those above all bounds."""

    def __init__(self, bounds: Sequence[float]):
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def copy(self) -> Histogram:
        """One that does not change."""
        same = Histogram(self.bounds)
        same.counts, same.total = list(self.counts), self.total
        return same


@dataclass
class Counters:
    """Gauges of this moment, totals since the start, and histograms.

    queued, reading, decoding: requests that wait, prompts being read, answers being decoded. requests: by outcome:
    finished, cancelled, failed, refused (the queue was full). step_s: of a decode step; step_rows: answers in it;
    queue_s: a request waited; first_token_s: from its submission to its first token.
    """

    queued: int = 0
    reading: int = 0
    decoding: int = 0
    requests: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    step_s: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    step_rows: Histogram = field(default_factory=lambda: Histogram(ROWS))
    queue_s: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    first_token_s: Histogram = field(default_factory=lambda: Histogram(SECONDS))

    def copy(self) -> Counters:
        """Values that do not change."""
        values = {name: value.copy() if hasattr(value, "copy") else value for name, value in vars(self).items()}
        return Counters(**values)
