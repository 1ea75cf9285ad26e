"""Prompts of an engine read from kept states, cut as sessions cut them."""

from __future__ import annotations

from collections.abc import Callable

from linmu.formats.bundle import Bundle
from linmu.processing import ModelInputs, Processor
from linmu.runtimes.base import Runner, RunnerState
from linmu.serving.prefix_cache import PrefixCache
from linmu.serving.prefixes import Prefixes, PromptReading


class KeptReader:
    """A PromptReader (linmu.serving.reading) on kept states."""

    def __init__(self, prefixes: Prefixes):
        self._prefixes = prefixes

    def begin(self, inputs: ModelInputs, state: RunnerState, keep: bool) -> PromptReading:
        """See PromptReader."""
        return self._prefixes.begin(self._prefixes.plan(inputs, keep), state)


def kept_reader(cache: PrefixCache | None, threads: int | None) -> Callable[[Runner, Bundle, int], KeptReader]:
    """What makes an engine's reader; without a cache prompts are cut in the same way, and nothing is kept.

    threads: as the engine opens its runner with.
    """

    def make(runner: Runner, bundle: Bundle, piece_tokens: int) -> KeptReader:
        processor = Processor.from_folder(bundle.folder, bundle.manifest.model.vocab_size)
        return KeptReader(Prefixes(bundle, runner, processor, cache, threads=threads, max_piece_tokens=piece_tokens))

    return make
