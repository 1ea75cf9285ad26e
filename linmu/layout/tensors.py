"""A prompt's layout as index tensors: what the prefill graph and the student's blocks gather with.

Glossary
    S     tokens of a prompt, or of one consecutive piece of it
    Nb    elements of the backward sequence: all vision tokens, and taps-1 zero elements between two spans,
          which empty the backward convolution before the next span
    W, L  rows and columns of the packed Local-Swin windows
    zero row  index S (or B*S for a batch): the graph appends a row of zeros there
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from linmu.errors import InputError
from linmu.layout.scan import invert, scan_order
from linmu.layout.types import SCHEDULES, SHIFTS, PromptLayout, Span
from linmu.layout.windows import pack_windows, window_pieces
from linmu.specs import TensorSpec

if TYPE_CHECKING:
    from linmu.config import MMateConfig  # imports this package

LAYOUT_SPECS: tuple[TensorSpec, ...] = (
    TensorSpec("layout.order", "int64", (SCHEDULES, "tokens")),
    TensorSpec("layout.inverse", "int64", (SCHEDULES, "tokens")),
    TensorSpec("layout.backward", "int64", (SCHEDULES, "backward")),
    TensorSpec("layout.backward_slot", "int64", (SCHEDULES, "tokens")),
    TensorSpec("layout.restart", "bool", ("backward",)),
    TensorSpec("layout.vision", "bool", ("tokens",)),
    TensorSpec("layout.windows", "int64", (SHIFTS, "windows", "window_tokens")),
    TensorSpec("layout.window_segment", "int64", (SHIFTS, "windows", "window_tokens")),
    TensorSpec("layout.window_slot", "int64", (SHIFTS, "tokens")),
)


def layout_tensors(
    layout: PromptLayout,
    mmate: MMateConfig,
    start: int = 0,
    stop: int | None = None,
    *,
    never_empty: bool = False,
    row: int | None = None,
) -> dict[str, np.ndarray]:
    """The tensors of LAYOUT_SPECS for tokens start..stop of a prompt, token indices relative to `start`.

    order [4,S]: scan position -> token; inverse [4,S]; backward [4,Nb]: token of each backward element, S on padding;
    backward_slot [4,S]: a token's place in it, 0 for text; restart [Nb]: first element of each span; vision [S];
    windows [2,W,L] and window_segment [2,W,L] (-1 on padding); window_slot [2,S]: row*L+column, 0 for text.
    With `never_empty` a text-only piece gets one element of padding in place of zero-sized tensors (for graphs).
    `row`: the length L of window rows (default: that of the longest window; the function is the same).
    Raises InputError for a piece that is empty, outside the prompt or cuts a span, and for a row that is too short.
    """
    stop = layout.length if stop is None else stop
    if not 0 <= start < stop <= layout.length:
        raise InputError(f"piece {start}..{stop} of a prompt of {layout.length} tokens")
    spans = []
    for span in layout.spans:
        first, last = int(span.positions[0]), int(span.positions[-1])
        if last < start or first >= stop:
            continue
        if first < start or last >= stop:
            raise InputError(f"piece {start}..{stop} cuts the span of tokens {first}..{last}")
        spans.append(Span(span.positions - start, span.grid))
    batch = _batch_tensors([spans], stop - start, mmate, row)
    batch["backward"], batch["restart"] = batch["backward"][:, 0], batch["restart"][0]
    if never_empty and not spans:
        batch["backward"] = np.full((SCHEDULES, 1), stop - start, np.int64)
        batch["restart"] = np.ones(1, bool)
        batch["windows"] = np.zeros((SHIFTS, 1, row or 1), np.int64)
        batch["window_segment"] = np.full((SHIFTS, 1, row or 1), -1, np.int64)
    return {f"layout.{name}": array for name, array in batch.items()}


def stack_layouts(
    layouts: list[PromptLayout], offsets: list[int], length: int, mmate: MMateConfig
) -> dict[str, np.ndarray]:
    """The same tensors for B left-padded prompts, as indices into the flattened [B*length] token axis.

    `offsets` [B]: left pad tokens; `length`: padded length S. order, inverse, backward_slot [4,B*S] (pads keep their
    place); backward [4,B,Nb] with B*S on padding, short rows padded at the end; backward_slot counts in the flattened
    [B*Nb] axis; restart [B,Nb]; vision [B*S]; windows, window_segment [2,W,L]; window_slot [2,B*S].
    Raises InputError when a prompt and its padding do not fill `length`.
    """
    rows = []
    for number, (layout, offset) in enumerate(zip(layouts, offsets, strict=True)):
        if offset < 0 or offset + layout.length != length:
            raise InputError(f"prompt {number}: {offset} pad tokens and {layout.length} tokens do not make {length}")
        shift = number * length + offset
        rows.append([Span(span.positions + shift, span.grid) for span in layout.spans])
    return _batch_tensors(rows, len(rows) * length, mmate)


def _batch_tensors(
    rows: list[list[Span]], tokens: int, mmate: MMateConfig, row: int | None = None
) -> dict[str, np.ndarray]:
    """All tensors of B rows of spans whose positions count in one axis of `tokens` tokens."""
    order = np.tile(np.arange(tokens, dtype=np.int64), (SCHEDULES, 1))
    vision = np.zeros(tokens, bool)
    for span in (span for row in rows for span in row):
        vision[span.positions] = True
        for schedule in range(SCHEDULES):
            order[schedule, span.positions] = span.positions[scan_order(span.grid, schedule, mmate.scan)]
    return {
        "order": order,
        "inverse": np.stack([invert(line) for line in order]),
        **_backward(rows, tokens, mmate),
        "vision": vision,
        **_windows(rows, tokens, mmate, row),
    }


def _backward(rows: list[list[Span]], tokens: int, mmate: MMateConfig) -> dict[str, np.ndarray]:
    """Spans first to last, each in reversed scan order, taps-1 zero elements between two of them."""
    gap = mmate.taps - 1
    width = max((sum(len(span.positions) + gap for span in row) - gap for row in rows if row), default=0)
    backward = np.full((SCHEDULES, len(rows), width), tokens, np.int64)
    slot = np.zeros((SCHEDULES, tokens), np.int64)
    restart = np.zeros((len(rows), width), bool)
    for number, row in enumerate(rows):
        low = 0
        for span in row:
            high = low + len(span.positions)
            restart[number, low] = True
            for schedule in range(SCHEDULES):
                visited = span.positions[scan_order(span.grid, schedule, mmate.scan)[::-1]]
                backward[schedule, number, low:high] = visited
                slot[schedule, visited] = number * width + np.arange(low, high)
            low = high + gap
    return {"backward": backward, "backward_slot": slot, "restart": restart}


def _windows(rows: list[list[Span]], tokens: int, mmate: MMateConfig, row: int | None) -> dict[str, np.ndarray]:
    """The windows of all spans, packed; both shifts padded to the same number of rows."""
    spans = [span for row in rows for span in row]
    pieces = [
        [span.positions[piece] for span in spans for piece in window_pieces(span.grid, mmate.window, bool(shift))]
        for shift in range(SHIFTS)
    ]
    length = row or max((len(piece) for both in pieces for piece in both), default=1)
    packed = [pack_windows(both, length) for both in pieces]
    count = max(len(index) for index, _ in packed)
    windows = np.zeros((SHIFTS, count, length), np.int64)
    segment = np.full((SHIFTS, count, length), -1, np.int64)
    slot = np.zeros((SHIFTS, tokens), np.int64)
    for shift, (index, number) in enumerate(packed):
        windows[shift, : len(index)], segment[shift, : len(index)] = index, number
        taken = np.flatnonzero(segment[shift] >= 0)
        slot[shift, windows[shift].reshape(-1)[taken]] = taken
    return {"windows": windows, "window_segment": segment, "window_slot": slot}
