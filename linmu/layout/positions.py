"""Rotary position ids of a prompt: plain, or M-RoPE as Qwen2.5-VL and Qwen3-VL count it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class VisionRun:
    """Consecutive vision tokens start..start+t*h*w that share one rotary origin.

    `interval`: rotary positions between two of its frames, rounded down after multiplying.
    """

    start: int
    grid: tuple[int, int, int]
    interval: float = 1.0


def plain_positions(length: int) -> tuple[np.ndarray, int]:
    """(position_ids [1,S] int64, position of the next token)."""
    return np.arange(length, dtype=np.int64)[None], length


def mrope_positions(length: int, runs: Sequence[VisionRun]) -> tuple[np.ndarray, int]:
    """(position_ids [3,S] int64 for time, row and column, position of the next token); runs in ascending order.

    A run takes max(h, w) positions, however many frames it has: text after a long video may repeat its positions.
    """
    positions = np.empty((3, length), np.int64)
    token, position = 0, 0
    for run in runs:
        text = run.start - token
        positions[:, token : run.start] = position + np.arange(text)
        position += text
        t, h, w = run.grid
        token = run.start + t * h * w
        # float32 like the teacher's tensors: in float64 another frame could round down.
        frames = (np.arange(t, dtype=np.float32) * np.float32(run.interval)).astype(np.int64)
        axes = np.meshgrid(frames, np.arange(h), np.arange(w), indexing="ij")
        positions[:, run.start : token] = position + np.stack(axes).reshape(3, -1)
        position += max(h, w)
    positions[:, token:] = position + np.arange(length - token)
    return positions, int(positions.max()) + 1 if length else 0
