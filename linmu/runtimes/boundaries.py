"""Where a prompt is always cut into the pieces that it is read in, whether or not a state is kept there.

Behind every message and every picture or clip a state may be wanted again: by the next turn, or by another question
about the same picture. A state is the same to the bit only if the same pieces led to it. So the cuts up to a place
depend on nothing behind it, and everybody makes them: `linmu run`, sessions and servers, with kept states or without.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from linmu.layout import PromptLayout, cut_points, pieces
from linmu.processing import ModelInputs

LEAST_PIECE_TOKENS = 64  # a cut costs about a decode step, as much as reading 12 to 17 tokens (docs/serving-states.md)


def boundaries(inputs: ModelInputs, layout: PromptLayout, message_ends: Collection[int]) -> list[int]:
    """Places behind a message or a medium, ascending: numbers of tokens before them, at most the prompt's length.

    message_ends: ids of tokens that stand behind a message (`Processor.message_end_ids`). A place inside a span is
    none.
    """
    behind = np.flatnonzero(np.isin(inputs.input_ids, list(message_ends))) + 1
    found = {*behind.tolist(), *_media_ends(inputs, layout)}
    return sorted(found.intersection(cut_points(layout)))


def cut_prompt(layout: PromptLayout, places: Collection[int], most: int) -> list[tuple[int, int]]:
    """Consecutive pieces (start, stop) of a prompt: cut at `places`, and where a piece would pass `most` tokens.

    A place less than LEAST_PIECE_TOKENS behind the last cut is passed over. A span longer than `most` stays whole, with
    the text inside it. Cuts before a place in `places` are those of every prompt that begins with the same tokens and
    media. Raises InputError when most < 1.
    """
    return pieces(layout, most, places, LEAST_PIECE_TOKENS)


def _media_ends(inputs: ModelInputs, layout: PromptLayout) -> list[int]:
    """Places behind the last token of each picture or clip."""
    if not layout.spans:
        return []
    tokens = np.sort(np.concatenate([span.positions for span in layout.spans]))
    counts = [sum(t * h * w for t, h, w in medium.tiles) for medium in inputs.media]
    return [int(tokens[last - 1]) + 1 for last in np.cumsum(counts)]
