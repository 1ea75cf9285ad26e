"""The data of a prompt's layout. numpy only: the student, the exporters and the devices all read these.

Glossary
    S            tokens of a prompt
    span         vision tokens of one image, one tile, or a group of at most `max_span_frames` video frames
    raster       t, then h, then w: the order in which a span's tokens stand in the prompt
    schedule     one of four scan orders (spatial-row, spatial-column, temporal-row, temporal-column): i % 4 of layer i
    shift        window shift of Local-Swin: layer i uses i % 2 (1 = shifted by half a window)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SCHEDULES = 4
SHIFTS = 2


@dataclass(frozen=True)
class MediaGrid:
    """One image or video of a prompt, in tokens after merging.

    `tiles`: (t, h, w) grids in the order of their tokens: one for a Qwen image or any video, one per tile otherwise.
    `seconds_per_grid`: seconds between two grid frames of a video (Qwen2.5-VL positions).
    """

    kind: str  # "image" | "video"
    tiles: tuple[tuple[int, int, int], ...]
    seconds_per_grid: float = 1.0


@dataclass(frozen=True)
class Span:
    """Vision tokens that see each other: `positions` [n] int64 ascending token indices, `grid` (t, h, w), n = t*h*w."""

    positions: np.ndarray
    grid: tuple[int, int, int]


@dataclass(frozen=True)
class PromptLayout:
    """One prompt: its length S, its spans in order, rotary `position_ids` [P, S] int64 (P = 1, or 3 for M-RoPE).

    `next_position` is the rotary position of the first generated token (the same on all P axes).
    """

    length: int
    spans: tuple[Span, ...]
    position_ids: np.ndarray
    next_position: int
