"""Reading a prompt from the longest prefix whose state is kept, and keeping states on the way.

plan = prefixes.plan(inputs)             any thread: where the prompt is cut, and the keys of its states
reading = prefixes.begin(plan, state)    the model's thread: the state is put to the longest known prefix
while (logits := reading.advance()) is None: ...    one piece a call
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from linmu.formats.bundle import Bundle
from linmu.layout import PromptLayout
from linmu.processing import ModelInputs, Processor
from linmu.runtimes.base import Runner, RunnerState
from linmu.runtimes.boundaries import LEAST_PIECE_TOKENS, boundaries, cut_prompt
from linmu.runtimes.prompt import PlacedPrompt, most_piece_tokens, pieces_at, place_prompt
from linmu.runtimes.state import StateSnapshot
from linmu.serving.prefix_cache import PrefixCache
from linmu.serving.prefix_keys import prompt_keys, runtime_identity


@dataclass(frozen=True)
class PromptPlan:
    """A prompt from the beginning of a conversation, cut into pieces (start, stop).

    keys: of the state behind each piece, none without a cache; reusable: how many of the states another prompt may
    begin with, too.
    """

    inputs: ModelInputs
    placed: PlacedPrompt
    cuts: tuple[tuple[int, int], ...]
    keys: tuple[str, ...]
    reusable: int


class Prefixes:
    """One runner's prompts, cut as sessions cut them; states are kept in `cache` (None: nowhere).

    processor: with `known` set where a cache is given; threads: as the runner was opened with; max_piece_tokens: the
    limit of a piece where the bundle's is too long for who waits.
    """

    def __init__(
        self,
        bundle: Bundle,
        runner: Runner,
        processor: Processor,
        cache: PrefixCache | None = None,
        *,
        threads: int | None = None,
        max_piece_tokens: int | None = None,
    ):
        self.bundle, self.runner, self.cache = bundle, runner, cache
        self._ends = processor.message_end_ids
        self._most = most_piece_tokens(bundle.manifest, runner, max_piece_tokens)
        self._identity = runtime_identity(bundle, runner.backend, threads)

    def plan(self, inputs: ModelInputs, keep: bool = True) -> PromptPlan:
        """Where a prompt is cut, and its keys unless `keep` is False; raises InputError as `place_prompt` does."""
        placed = place_prompt(inputs, self.bundle.manifest)
        places = boundaries(inputs, placed.layout, self._ends)
        cuts = tuple(cut_prompt(placed.layout, places, self._most))
        kept = keep and self.cache is not None
        keys = prompt_keys(self._identity, inputs, placed.layout, cuts) if kept else ()
        start, stop = cuts[-1]
        ends_there = stop in places and stop - start >= LEAST_PIECE_TOKENS
        return PromptPlan(inputs, placed, cuts, keys, len(cuts) - (not ends_there))

    def begin(self, plan: PromptPlan, state: RunnerState) -> PromptReading:
        """Put `state`, whatever it holds, to the longest known prefix, or to the beginning."""
        known = self.cache.longest(plan.keys[: len(plan.cuts) - 1]) if self.cache is not None else None
        if known is None:
            state.zero()
            return PromptReading(self, plan, state, 0)
        state.write(known[1].tensors)
        return PromptReading(self, plan, state, known[0] + 1)


class PromptReading:
    """A prompt that is being read, a piece at a time; `cached_tokens` need not be read."""

    def __init__(self, prefixes: Prefixes, plan: PromptPlan, state: RunnerState, done: int):
        self.plan, self._prefixes, self._state, self._done = plan, prefixes, state, done
        self.cached_tokens = plan.cuts[done - 1][1] if done else 0
        self._kept = set(worth_keeping(range(done, plan.reusable))) if plan.keys else set()
        left = plan.cuts[done:]
        self._pieces = pieces_at(left, plan.inputs, prefixes.runner, prefixes.bundle.manifest, plan.placed)

    @property
    def tokens(self) -> int:
        """Tokens of the whole prompt."""
        return self.plan.placed.layout.length

    @property
    def tokens_left(self) -> int:
        """Tokens that are still to be read."""
        return self.tokens - (self.plan.cuts[self._done - 1][1] if self._done else 0)

    @property
    def next_position(self) -> int:
        """The rotary position of the first token of the answer."""
        return self.plan.placed.next_position

    def advance(self) -> np.ndarray | None:
        """Read the next piece; None, or after the last one the logits [V] of the prompt's last token.

        Whatever is raised, the state then is of no use for this prompt.
        """
        logits = self._prefixes.runner.prefill(next(self._pieces), self._state)
        if self._done in self._kept:
            self._keep(self._done)
        self._done += 1
        return logits if self._done == len(self.plan.cuts) else None

    def _keep(self, index: int) -> None:
        cache, key, stop = self._prefixes.cache, self.plan.keys[index], self.plan.cuts[index][1]
        if cache is not None and key not in cache:
            cache.put(key, StateSnapshot(self._state.read(), _position(self.plan.placed.layout, stop), stop, ()))


def worth_keeping(places: Sequence[int]) -> list[int]:
    """The places of a prompt that are kept: the first, and the 1st, 2nd, 4th, 8th, ... from the end.

    The first is a system prompt, that others share; the last ones are where the next turn goes on. Of a hundred
    messages that are read at once eight states stay.
    """
    back = [2**i for i in range(len(places).bit_length())]
    chosen = [places[-step] for step in back if step <= len(places)]
    return sorted({*places[:1], *chosen})


def _position(layout: PromptLayout, stop: int) -> int:
    """The rotary position of a token that would stand at `stop`."""
    return int(layout.position_ids[:, :stop].max()) + 1
