"""Video: which frames each family looks at, when they are shown, and reading them (the extra "video")."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from linmu.errors import InputError
from linmu.formats.video_file import Screen, opened_video
from linmu.processing.images import resize
from linmu.processing.settings import GridSettings, VideoSettings

DEFAULT_FPS = 2.0
DEFAULT_NUM_FRAMES = 8
RATES = (1e-6, 1e6)  # frames a second
MAX_FRAMES = 2**20  # 4.8 hours at 60 a second
CLOCK = 0.002  # seconds by which clocks of containers round
SKIPPED_SECONDS = 1  # SmolVLM leaves out the first and last second of a long video


@dataclass(frozen=True)
class Clip:
    """Sampled frames [T, H, W, 3] uint8 (or what was kept of them), and what is known of their source.

    indices: their places in it, fps: its frames per second, total: its frames; seconds: of each frame from the first
    one of the source, where it is not indices / fps.
    """

    frames: np.ndarray
    indices: tuple[int, ...]
    fps: float
    total: int
    seconds: tuple[float, ...] | None = None

    @property
    def timestamps(self) -> list[float]:
        """Seconds from the start, one per frame."""
        return [index / self.fps for index in self.indices] if self.seconds is None else list(self.seconds)

    @property
    def sampled_fps(self) -> float:
        """Frames per second after sampling."""
        return len(self.indices) / self.total * self.fps


Sampler = Callable[[int, float], np.ndarray]  # (total frames, their rate) -> indices of the frames to take
Fit = Callable[[np.ndarray, int], np.ndarray]  # (frame [H, W, 3] uint8, frames of the clip) -> what is kept of it


def _steps(start: float, total: int, count: int) -> np.ndarray:
    """Indices from `start` to `total` in `count` equal steps, rounded down from float32 like the original."""
    step = total / count
    size = math.ceil((total - start) / step)
    return (start + np.arange(size) * step).astype(np.float32).astype(np.int64)


def sample_qwen2_5(total: int, rate: float, settings: VideoSettings) -> np.ndarray:
    """`fps` frames a second, whole temporal patches, within `min_frames` and `max_frames`."""
    step = settings.frames.temporal_patch_size if isinstance(settings.frames, GridSettings) else 1
    if settings.num_frames is not None:
        count = min(round(settings.num_frames / step) * step, total)
    else:
        most = math.floor(min(settings.max_frames, total) / step) * step
        wanted = total / rate * (settings.fps or DEFAULT_FPS)
        count = math.floor(min(max(wanted, settings.min_frames), most, total) / step) * step
    return _steps(0, total, count or total)


def sample_qwen3(total: int, rate: float, settings: VideoSettings) -> np.ndarray:
    """`fps` frames a second, first and last frame included, within `min_frames` and `max_frames`."""
    count = settings.num_frames
    if count is None:
        count = int(total / rate * (settings.fps or DEFAULT_FPS))
        count = min(max(count, settings.min_frames), settings.max_frames, total)
    return np.linspace(0, total - 1, count).round().astype(np.int64)


def sample_smolvlm(total: int, rate: float, settings: VideoSettings) -> np.ndarray:
    """`fps` frames a second, at most `num_frames`, without the first and last second of a long video."""
    most, fps, duration = settings.num_frames or 64, settings.fps or 1, total / rate
    count = max(min(int(round(fps * duration)), most), 1)
    start, end = 0, total - 1
    if duration - 2 * SKIPPED_SECONDS > most * fps:
        start = max(0, int(SKIPPED_SECONDS * rate))
        end = min(int(total - SKIPPED_SECONDS * rate), total - 1)
    if start >= end:
        start, end = 0, total - 1
    return np.unique(np.linspace(start, end, count, dtype=np.int64))


def sample_internvl(total: int, rate: float, settings: VideoSettings) -> np.ndarray:
    """The middle frames of `num_frames` equal parts (or of `fps` parts a second)."""
    count = settings.num_frames
    if count is None:
        count = int(total / rate * settings.fps) if settings.fps else DEFAULT_NUM_FRAMES
    count = min(max(count, 1), total)
    return _steps(total / count / 2, total, count)


SAMPLERS: dict[str, Callable[[int, float, VideoSettings], np.ndarray]] = {
    "qwen2_5_vl": sample_qwen2_5,
    "qwen3_vl": sample_qwen3,
    "smolvlm": sample_smolvlm,
    "internvl": sample_internvl,
}


def frames_clip(frames: np.ndarray, fps: float | None) -> Clip:
    """Frames that were already chosen, `fps` a second (2 unless given); InputError on a wrong shape, dtype or rate."""
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or 0 in frames.shape:
        raise InputError(
            "video frames", got=f"{frames.dtype} {list(frames.shape)}", expected="uint8 [frames, height, width, 3]"
        )
    return Clip(frames, tuple(range(len(frames))), checked_rate(fps or DEFAULT_FPS), len(frames))


def checked_rate(fps: float) -> float:
    """A rate in frames per second; InputError unless it is a positive number of a sensible size."""
    if not RATES[0] <= fps <= RATES[1]:
        raise InputError("video frames per second", got=fps, expected="a positive number, 1e-6 to 1e6")
    return float(fps)


@dataclass(frozen=True)
class Timeline:
    """The frames that a player shows: seconds of each from the first one, ascending, and how many come in a second.

    steady: frame i comes at i / rate, to within half a frame. stamps: the file's own times, None where it has none
    that can be trusted.
    """

    seconds: np.ndarray
    rate: float
    steady: bool
    stamps: list[int] | None


def _announced(path: Path) -> Timeline | None:
    """The timeline by the packets of a file, without decoding; None where they do not tell.

    Headers count frames that an edit list cuts off; packets say which are not shown.
    """
    with opened_video(path) as (container, stream):
        packets = (packet for packet in container.demux(stream) if packet.size and not packet.is_discard)
        return _timeline(((packet.pts, packet.duration) for packet in packets), stream, path)


def _decoded(path: Path) -> Timeline:
    """The timeline by decoding every frame; without usable times, frames come steadily at the header's rate."""
    with opened_video(path) as (container, stream):
        frames = [(frame.pts, getattr(frame, "duration", 0)) for frame in container.decode(stream)]
        line, rate = _timeline(frames, stream, path), _header_rate(stream)
    if line is not None:
        return line
    if not frames or rate <= 0:
        raise InputError(f"no frames in the video {path}", got=f"{len(frames)} frames at {rate:g} per second")
    return Timeline(np.arange(len(frames)) / rate, rate, True, None)


def _header_rate(stream: Any) -> float:
    return float(stream.average_rate or stream.guessed_rate or 0)


def _timeline(frames: Iterable[tuple[int | None, int | None]], stream: Any, path: Path) -> Timeline | None:
    """The timeline of (time, duration) in the stream's clock, in any order; None where a time is missing or twice."""
    shown: list[tuple[int, int]] = []
    for stamp, lasting in frames:
        if stamp is None:
            return None
        if len(shown) >= MAX_FRAMES:
            raise InputError(f"the video {path} is too long", got=f"more than {MAX_FRAMES} frames", fix="cut it")
        shown.append((stamp, lasting or 0))
    shown.sort()
    stamps = [stamp for stamp, _ in shown]
    if not stamps or len(set(stamps)) < len(stamps) or not stream.time_base:
        return None
    seconds = (np.array(stamps, np.float64) - stamps[0]) * float(stream.time_base)
    rate, half = _header_rate(stream), 0.0
    if rate > 0:
        half = 0.5 / rate
        if np.abs(seconds - np.arange(len(seconds)) / rate).max() <= half:
            return Timeline(seconds, rate, True, stamps)
    last = shown[-1][1] * float(stream.time_base) or seconds[-1] / max(len(seconds) - 1, 1)
    if seconds[-1] + last <= 0:
        return None
    return Timeline(seconds, len(seconds) / float(seconds[-1] + last), False, stamps)


def _chosen(indices: list[int], line: Timeline) -> tuple[list[int], list[float]]:
    """The frames to take for a sampler's indices, and the second that each is looked at.

    Samplers count steady frames: index i means the moment i / rate. Where frames do not come steadily the one on the
    screen at that moment is taken, unless all frames are asked for anyway.
    """
    moments = [index / line.rate for index in indices]
    every = len(set(indices)) == len(line.seconds)
    half, frames = 0.5 / line.rate, indices
    if not line.steady and not every:
        frames = [_on_screen(moment, half, line.seconds) for moment in moments]
    times = []
    for frame, moment in zip(frames, moments, strict=True):
        came = float(line.seconds[frame])
        still = came < moment - half and not every  # it came earlier and stands
        times.append(moment if still or abs(came - moment) <= CLOCK else came)
    return frames, times


def _on_screen(moment: float, half: float, seconds: np.ndarray) -> int:
    """The frame on the screen at a moment, or the next one if that is nearer and at most `half` a frame away."""
    place = max(int(np.searchsorted(seconds, moment, side="right")) - 1, 0)
    wait = seconds[min(place + 1, len(seconds) - 1)] - moment
    return place + 1 if 0 < wait <= min(half, moment - seconds[place]) else place


def read_clip(path: Path, sampler: Sampler, fit: Fit | None = None) -> Clip:
    """The frames of a file that `sampler` chooses, as a player shows them; keeps only those in memory.

    `fit` makes what is kept of a frame, given it and the number of frames: [T, ...] arrays of one shape.
    Raises InputError on a file that cannot be read, MissingComponentError without PyAV.
    """
    line = _announced(path)
    clip = None if line is None else _read(path, line, sampler, fit)
    if clip is None:  # the packets did not tell the truth
        clip = _read(path, replace(_decoded(path), stamps=None), sampler, fit)
    if clip is None:
        raise InputError(f"no frames could be decoded from {path}", fix="write the video anew")
    return clip


def _read(path: Path, line: Timeline, sampler: Sampler, fit: Fit | None) -> Clip | None:
    """The clip; None when the file has other frames than the timeline says."""
    indices = [int(index) for index in sampler(len(line.seconds), line.rate)]
    frames, times = _chosen(indices, line)
    kept: np.ndarray | None = None  # filled frame by frame
    shape, missing = (0, 0), set(frames)
    with opened_video(path) as (container, stream):
        screen = Screen(stream)
        for number, frame in enumerate(container.decode(stream)):
            if line.stamps is not None and frame.pts != line.stamps[number]:
                return None
            if number in missing:
                pixels = screen.show(frame)
                if kept is not None and pixels.shape[:2] != shape:  # players scale to the size of the first one
                    pixels = resize(pixels, shape, Image.Resampling.BICUBIC)
                shape = (pixels.shape[0], pixels.shape[1])
                fitted = pixels if fit is None else fit(pixels, len(frames))
                kept = np.empty((len(frames), *fitted.shape), np.uint8) if kept is None else kept
                kept[[place for place, chosen in enumerate(frames) if chosen == number]] = fitted
                missing.remove(number)
            if not missing:
                break
    if kept is None or missing:
        return None
    return Clip(kept, tuple(indices), line.rate, len(line.seconds), tuple(times))
