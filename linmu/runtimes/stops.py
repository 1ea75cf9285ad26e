"""Stop strings: the text of an answer up to the first of them, though it may begin in one piece and end in the next."""

from __future__ import annotations

from collections.abc import Sequence

from linmu.errors import InputError


def checked_stops(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """Stop strings as a tuple; InputError for an empty one."""
    stops = () if stop is None else (stop,) if isinstance(stop, str) else tuple(stop)
    if not all(isinstance(item, str) and item for item in stops):
        raise InputError("stop", got=repr(stop)[:60], expected="texts, none of them empty")
    return stops


class StopFilter:
    """Pieces of a text go in, and come out as far as no stop string can begin in them; `complete` when one is."""

    def __init__(self, stops: Sequence[str]):
        self._stops, self._held = tuple(stops), ""
        self.text, self.complete = "", False

    def push(self, text: str) -> str:
        """What may be shown of the text so far."""
        self._held += text
        ends = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if ends:
            self.complete = True
            return self._give(min(ends))
        return self._give(len(self._held) - max((self._overlap(stop) for stop in self._stops), default=0))

    def flush(self) -> str:
        """The rest of a text that ended without a stop string."""
        return "" if self.complete else self._give(len(self._held))

    def _give(self, count: int) -> str:
        ready, self._held = self._held[:count], self._held[count:]
        self.text += ready
        return ready

    def _overlap(self, stop: str) -> int:
        """Characters at the end of the held text with which a stop string may begin."""
        most = min(len(stop) - 1, len(self._held))
        return next((count for count in range(most, 0, -1) if stop.startswith(self._held[-count:])), 0)
