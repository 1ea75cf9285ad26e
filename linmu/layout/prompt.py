"""From token ids and media to a PromptLayout: which vision tokens form which span, and all rotary positions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from linmu.errors import InputError
from linmu.layout.positions import VisionRun, mrope_positions, plain_positions
from linmu.layout.rules import PromptRules
from linmu.layout.types import MediaGrid, PromptLayout, Span

__all__ = ["PromptRules", "media_from_grids", "media_of_batch", "prompt_layout"]


def prompt_layout(rules: PromptRules, input_ids: Any, media: Sequence[MediaGrid], max_span_frames: int) -> PromptLayout:
    """The layout of one prompt `input_ids` [S], its media in the order of their tokens.

    Every image tile is a span; a video is cut into spans of at most `max_span_frames` grid frames, text between the
    frames of a span allowed. Raises InputError when tokens and media do not match.
    """
    ids = np.asarray(input_ids).reshape(-1)
    if max_span_frames < 1:
        raise InputError("frames of a span", got=max_span_frames, expected="at least 1")
    spans: list[Span] = []
    runs: list[VisionRun] = []
    places = _vision_places(rules, ids)
    _check_media(rules, ids, places, media)
    taken = 0
    for item in media:
        for grid in item.tiles:
            count = grid[0] * grid[1] * grid[2]
            tokens = places[taken : taken + count]
            taken += count
            spans += _cut_spans(tokens, grid, max_span_frames)
            runs += _runs(rules, tokens, grid, item)
    if rules.facts.rope == "plain":
        positions, following = plain_positions(len(ids))
    else:
        positions, following = mrope_positions(len(ids), runs)
    return PromptLayout(len(ids), tuple(spans), positions, following)


def _vision_places(rules: PromptRules, ids: np.ndarray) -> np.ndarray:
    """Ascending indices [n] of the vision tokens."""
    known = [token for token in (rules.image_token_id, rules.video_token_id) if token is not None]
    return np.flatnonzero(np.isin(ids, known)).astype(np.int64)


def _check_media(rules: PromptRules, ids: np.ndarray, places: np.ndarray, media: Sequence[MediaGrid]) -> None:
    """Raise InputError unless the media take exactly the vision tokens, each its own kind."""
    if bad := [grid for item in media for grid in item.tiles if min(grid) < 1]:
        raise InputError("the grid of an image or a video", got=bad[0], expected="at least one token each way")
    counts = [sum(t * h * w for t, h, w in item.tiles) for item in media]
    if sum(counts) != len(places):
        raise InputError(
            f"the prompt's vision tokens do not match its {len(media)} images and videos",
            got=f"{len(places)} vision tokens",
            expected=f"{sum(counts)}",
            fix="expand every placeholder to the tokens of its own image or video",
        )
    taken = 0
    for number, (item, count) in enumerate(zip(media, counts, strict=True)):
        token = rules.video_token_id if item.kind == "video" else rules.image_token_id
        token = rules.image_token_id if token is None else token  # tile families: a frame is an image
        if not np.all(ids[places[taken : taken + count]] == token):
            raise InputError(
                f"the tokens of medium {number}",
                got="another kind of vision token",
                expected=f"{count} tokens of id {token} ({item.kind})",
                fix="give images and videos in the order of their placeholders",
            )
        taken += count


def _cut_spans(tokens: np.ndarray, grid: tuple[int, int, int], max_frames: int) -> list[Span]:
    """Spans of at most `max_frames` frames; raises InputError when a frame is not in one piece."""
    t, h, w = grid
    frames = tokens.reshape(t, h * w)
    if np.any(frames[:, -1] - frames[:, 0] != h * w - 1):
        raise InputError(
            "the tokens of one image or video frame are not consecutive",
            got=f"text inside a grid of {h} x {w} tokens",
            expected=f"{h * w} vision tokens in a row",
            fix="check the order and the sizes of the images",
        )
    cuts = range(0, t, max_frames)
    return [Span(frames[low : low + max_frames].reshape(-1), (min(max_frames, t - low), h, w)) for low in cuts]


def _runs(rules: PromptRules, tokens: np.ndarray, grid: tuple[int, int, int], item: MediaGrid) -> list[VisionRun]:
    """The M-RoPE runs of one grid: Qwen3-VL starts anew at every frame, Qwen2.5-VL spaces a video's frames by time."""
    t, h, w = grid
    if rules.facts.rope == "plain":
        return []
    if rules.facts.rope == "mrope_interleaved":
        return [VisionRun(int(start), (1, h, w)) for start in tokens[:: h * w]]
    if tokens[-1] - tokens[0] != len(tokens) - 1:
        raise InputError("text between the frames of a video", got=rules.family, expected="one run of video tokens")
    interval = rules.tokens_per_second * item.seconds_per_grid if item.kind == "video" else 1.0
    return [VisionRun(int(tokens[0]), (t, h, w), interval)]


def media_from_grids(
    rules: PromptRules,
    input_ids: Any,
    image_grid_thw: Any = None,
    video_grid_thw: Any = None,
    second_per_grid_ts: Any = None,
) -> tuple[MediaGrid, ...]:
    """The media of one prompt [S] from transformers' inputs; see `media_of_batch`."""
    ids = np.asarray(input_ids).reshape(1, -1)
    return media_of_batch(rules, ids, image_grid_thw, video_grid_thw, second_per_grid_ts)[0]


def media_of_batch(
    rules: PromptRules,
    input_ids: Any,
    image_grid_thw: Any = None,
    video_grid_thw: Any = None,
    second_per_grid_ts: Any = None,
) -> list[tuple[MediaGrid, ...]]:
    """The media of every prompt of `input_ids` [B,S], in the order of their tokens.

    Grid families: `*_grid_thw` [n,3] in patches, all prompts' in one array; `second_per_grid_ts` [videos] seconds.
    Tile families: every tokens_per_tile image tokens are one square image. Raises InputError when counts differ.
    """
    rows = [np.asarray(row).reshape(-1) for row in input_ids]
    if rules.facts.vision == "grid":
        waiting = {
            rules.image_token_id: _grids(rules, "image", image_grid_thw, None),
            rules.video_token_id: _grids(rules, "video", video_grid_thw, second_per_grid_ts),
        }
        media = [_take_grids(rules, row, waiting) for row in rows]
        if left := Counter(item.kind for queue in waiting.values() for item in queue):
            raise InputError("grids without tokens in the prompt", got=dict(left), expected="as many placeholders")
        return media
    return [_square_tiles(rules, len(_vision_places(rules, row))) for row in rows]


def _grids(rules: PromptRules, kind: str, grids: Any, seconds: Any) -> list[MediaGrid]:
    """MediaGrids of [n,3] patch grids, last first (to be popped)."""
    if grids is None:
        return []
    table = np.asarray(grids, dtype=np.int64).reshape(-1, 3)
    if np.any(table < 1) or np.any(table[:, 1:] % rules.merge_size):
        raise InputError(f"{kind}_grid_thw", got=table.tolist(), expected=f"sides divisible by {rules.merge_size}")
    steps = [1.0] * len(table) if seconds is None else [float(step) for step in seconds]
    if len(steps) != len(table):
        raise InputError("second_per_grid_ts", got=f"{len(steps)} values", expected=f"{len(table)}, one per video")
    merge = rules.merge_size
    media = [
        MediaGrid(kind, ((int(t), int(h) // merge, int(w) // merge),), step)
        for (t, h, w), step in zip(table, steps, strict=True)
    ]
    return media[::-1]


def _take_grids(
    rules: PromptRules, ids: np.ndarray, waiting: dict[int | None, list[MediaGrid]]
) -> tuple[MediaGrid, ...]:
    """The media of one prompt, taken from the queues in the order of its tokens."""
    places, taken, media = _vision_places(rules, ids), 0, []
    while taken < len(places):
        queue = waiting[int(ids[places[taken]])]
        if not queue:
            raise InputError(
                "vision tokens without a grid",
                got=f"{len(places) - taken} tokens left",
                expected="image_grid_thw and video_grid_thw for all of them",
                fix="pass every output of the processor to the model",
            )
        media.append(queue.pop())
        taken += int(np.prod(media[-1].tiles[0]))
    return tuple(media)


def _square_tiles(rules: PromptRules, tokens: int) -> tuple[MediaGrid, ...]:
    """One square image per `tokens_per_tile` tokens."""
    if not tokens:
        return ()
    tile = rules.tile
    if tokens % rules.tokens_per_tile:
        raise InputError(
            "image tokens of the prompt", got=tokens, expected=f"a multiple of {rules.tokens_per_tile} (one tile)"
        )
    return tuple(MediaGrid("image", (tile,)) for _ in range(tokens // rules.tokens_per_tile))
