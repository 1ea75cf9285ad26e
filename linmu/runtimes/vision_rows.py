"""Rows of the vision graph, put into a prompt's embeddings medium by medium.

Every picture or clip is encoded by itself: in a batch with other pictures its last bits could depend on them, and a
prefix that was read before would then not be the one that is read now.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from linmu.errors import BundleError, InputError
from linmu.layout import MediaGrid, PromptLayout
from linmu.processing import ModelInputs
from linmu.processing.media import ChainedCalls, TileCalls
from linmu.runtimes.base import Runner


class VisionRows:
    """Fills pieces of a prompt in their order, from token `start` on; a call runs when its first row is needed."""

    def __init__(self, inputs: ModelInputs, runner: Runner, layout: PromptLayout, start: int = 0):
        self.runner = runner
        spans = [span.positions for span in layout.spans]
        self.places = np.sort(np.concatenate(spans)) if spans else np.zeros(0, np.int64)
        self.calls = _unread_calls(inputs, int(np.searchsorted(self.places, start)))
        self.rows: np.ndarray | None = None
        self.deep: np.ndarray | None = None

    def fill(self, embeds: np.ndarray, deepstack: np.ndarray | None, start: int, stop: int) -> None:
        """Replace the embeddings of the vision tokens among start..stop."""
        here = self.places[(self.places >= start) & (self.places < stop)] - start
        if not len(here):
            return
        rows, deep = self._take(len(here))
        if rows.shape[1:] != embeds.shape[1:]:
            raise BundleError(
                "the vision graph's embeddings",
                got=f"width {rows.shape[1:]}",
                expected=embeds.shape[1],
                fix="export the bundle again",
            )
        embeds[here] = rows
        if deepstack is not None and deep is not None:
            if deep.shape != (wanted := (len(deepstack), *rows.shape)):
                raise BundleError(
                    "the vision graph's deepstack", got=deep.shape, expected=wanted, fix="export the bundle again"
                )
            deepstack[:, 0, here] = deep

    def _take(self, count: int) -> tuple[np.ndarray, np.ndarray | None]:
        while self.rows is None or len(self.rows) < count:
            call, skipped = next(self.calls, (None, 0))
            if call is None:
                got = 0 if self.rows is None else len(self.rows)
                raise InputError(
                    "the vision graph gave fewer rows than the prompt has vision tokens", got=got, expected=count
                )
            features = self.runner.encode(call)
            self.rows = _joined(self.rows, features.embeddings[skipped:], 0)
            if features.deepstack is not None:
                self.deep = _joined(self.deep, features.deepstack[:, skipped:], 1)
        rows, self.rows = self.rows[:count], self.rows[count:]
        if self.deep is None:
            return rows, None
        deep, self.deep = self.deep[:, :count], self.deep[:, count:]
        return rows, deep


def _unread_calls(inputs: ModelInputs, read: int) -> Iterator[tuple[dict[str, np.ndarray], int]]:
    """The calls behind the first `read` vision tokens, with the rows at the beginning of each that were read."""
    for index, medium in enumerate(inputs.media):
        count = sum(t * h * w for t, h, w in medium.tiles)
        if read >= count:
            read -= count
            continue
        calls = _calls_of(inputs, index)
        rows = count // len(calls) if calls else count  # a clip's grid frames are equal, other media are one call
        for number in range(read // rows, len(calls)):
            yield calls[number], read % rows
            read = 0


def _calls_of(inputs: ModelInputs, index: int) -> Sequence[dict[str, np.ndarray]]:
    """The calls of one medium, made when asked for; of calls that somebody joined by hand, what belongs to it."""
    calls = inputs.vision_calls
    if isinstance(calls, TileCalls | ChainedCalls):
        return calls.parts[index] if index < len(calls.parts) else ()
    counts = [_tiles(medium) for medium in inputs.media]
    low, high = sum(counts[:index]), sum(counts[: index + 1])
    if not calls or "grid" in calls[0]:
        return calls[low:high]
    tiles = np.concatenate([call["pixel_values"] for call in calls])[low:high]
    return [{"pixel_values": tiles}] if len(tiles) else ()


def _tiles(medium: MediaGrid) -> int:
    return sum(t for t, _, _ in medium.tiles)


def _joined(old: np.ndarray | None, new: np.ndarray, axis: int) -> np.ndarray:
    return new if old is None else np.concatenate([old, new], axis)
