"""Prompt -> spans, scan orders, windows and position ids (numpy only)."""

from __future__ import annotations

from linmu.layout.cutting import cut_points, pieces
from linmu.layout.prompt import PromptRules, media_from_grids, media_of_batch, prompt_layout
from linmu.layout.scan import invert, scan_order
from linmu.layout.tensors import LAYOUT_SPECS, layout_tensors, stack_layouts
from linmu.layout.types import SCHEDULES, SHIFTS, MediaGrid, PromptLayout, Span
from linmu.layout.windows import pack_windows, window_pieces

__all__ = [
    "LAYOUT_SPECS",
    "SCHEDULES",
    "SHIFTS",
    "MediaGrid",
    "PromptLayout",
    "PromptRules",
    "Span",
    "cut_points",
    "invert",
    "layout_tensors",
    "media_from_grids",
    "media_of_batch",
    "pack_windows",
    "pieces",
    "prompt_layout",
    "scan_order",
    "stack_layouts",
    "window_pieces",
]
