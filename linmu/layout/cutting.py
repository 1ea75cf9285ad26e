"""Where a prompt may be cut into pieces that are prefilled one after the other."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from linmu.errors import InputError
from linmu.layout.types import PromptLayout


def cut_points(layout: PromptLayout, start: int = 0) -> list[int]:
    """All legal ends of a piece that begins at `start`, ascending, the prompt's length last.

    A cut at c parts token c-1 from token c; it is legal unless both lie in one span or in text inside one.
    """
    legal = np.ones(layout.length + 1, bool)
    legal[: start + 1] = False
    for span in layout.spans:
        legal[span.positions[0] + 1 : span.positions[-1] + 1] = False
    return np.flatnonzero(legal).tolist()


def pieces(
    layout: PromptLayout, max_tokens: int, places: Collection[int] = (), least_tokens: int = 1
) -> list[tuple[int, int]]:
    """Cut a prompt greedily into consecutive (start, stop) of at most `max_tokens` tokens.

    A span longer than that, with the text inside it, stays whole. places: legal cuts that end a piece of at least
    `least_tokens` tokens early. Raises InputError when max_tokens < 1.
    """
    if max_tokens < 1:
        raise InputError(f"pieces of {max_tokens} tokens")
    cuts, wanted = np.asarray(cut_points(layout), np.int64), np.asarray(sorted(places), np.int64)
    ends, start = [], 0
    while start < layout.length:
        fitting = int(np.searchsorted(cuts, start + max_tokens, side="right"))
        first = int(np.searchsorted(cuts, start, side="right"))
        stop = int(cuts[max(fitting - 1, first)])
        early = wanted[np.searchsorted(wanted, start + max(least_tokens, 1)) :][:1]
        stop = min([stop, *early.tolist()])
        ends.append((start, stop))
        start = stop
    return ends
