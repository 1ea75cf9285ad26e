"""Hand-made layouts for the tests: no prompt rules involved."""

from __future__ import annotations

import numpy as np

from linmu.layout import PromptLayout, Span


def layout_of(*parts: int | tuple[int, int, int] | tuple[int, int, int, int]) -> PromptLayout:
    """A prompt of text runs (a length), spans (t, h, w), and spans with text between frames (t, h, w, text)."""
    token, spans = 0, []
    for part in parts:
        if isinstance(part, int):
            token += part
            continue
        (t, h, w), text = part[:3], part[3] if len(part) == 4 else 0
        starts = token + np.arange(t) * (h * w + text)
        spans.append(Span((starts[:, None] + np.arange(h * w)).reshape(-1), (t, h, w)))
        token = int(spans[-1].positions[-1]) + 1
    return PromptLayout(token, tuple(spans), np.arange(token)[None], token)


MIXED = layout_of(3, (1, 4, 5), 2, (3, 2, 3, 2), (2, 3, 2), 4)
TEXT = layout_of(6)
BARE = layout_of((1, 1, 1), (1, 3, 1))
