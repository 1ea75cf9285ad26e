"""Video: which frames each family looks at, and reading them with PyAV (the extra "video")."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from linmu.errors import InputError, MissingComponentError
from linmu.processing.settings import GridSettings, VideoSettings

DEFAULT_FPS = 2.0
DEFAULT_NUM_FRAMES = 8
SKIPPED_SECONDS = 1  # SmolVLM leaves out the first and last second of a long video


@dataclass(frozen=True)
class Clip:
    """Sampled frames [T, H, W, 3] uint8, their indices in the source, its frames per second and its total frames."""

    frames: np.ndarray
    indices: tuple[int, ...]
    fps: float
    total: int

    @property
    def timestamps(self) -> list[float]:
        """Seconds from the start, one per frame."""
        return [index / self.fps for index in self.indices]

    @property
    def sampled_fps(self) -> float:
        """Frames per second after sampling."""
        return len(self.indices) / self.total * self.fps


Sampler = Callable[[int, float], np.ndarray]  # (total frames, their rate) -> indices of the frames to take


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
    """A rate in frames per second; InputError unless it is a positive number."""
    if not math.isfinite(fps) or fps <= 0:
        raise InputError("video frames per second", got=fps, expected="a positive number")
    return float(fps)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """PyAV's (container, first video stream) of a file; turns its errors into InputError."""
    try:
        import av
    except ImportError as error:
        raise MissingComponentError("PyAV (av)", needed_for="reading video files", extra="video") from error
    if not path.is_file():
        raise InputError("cannot find the video", got=path, expected="a file")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise InputError(f"no video stream in {path}", fix="give a file with pictures")
            yield container, container.streams.video[0]
    except (av.FFmpegError, OSError, EOFError) as error:
        raise InputError(
            f"cannot read the video {path}",
            got=f"{path.stat().st_size} bytes, {error}",
            expected="an MP4, WebM, ... file",
        ) from error


def _count_frames(path: Path) -> int:
    """Frames of a file whose header does not tell."""
    with _opened(path) as (container, stream):
        return sum(1 for _ in container.decode(stream))


def read_clip(path: Path, sampler: Sampler) -> Clip:
    """The frames of a file that `sampler` chooses; decodes once, keeps only those frames in memory.

    Raises InputError on a file that cannot be read, MissingComponentError without PyAV.
    """
    with _opened(path) as (_, stream):
        total, rate = int(stream.frames), float(stream.average_rate or stream.guessed_rate or 0)
    total = total or _count_frames(path)
    if total < 1 or rate <= 0:
        raise InputError(f"no frames in the video {path}", got=f"{total} frames at {rate} per second")
    indices = [int(index) for index in sampler(total, rate)]
    wanted, last, found = set(indices), max(indices), {}
    with _opened(path) as (container, stream):
        for index, frame in enumerate(container.decode(stream)):
            if index in wanted:
                found[index] = frame.to_ndarray(format="rgb24")
            if index >= last:
                break
    kept = [index for index in indices if index in found]  # a header may promise more frames than the file holds
    if not kept:
        raise InputError(f"no frames could be decoded from {path}", got=f"{total} announced")
    return Clip(np.stack([found[index] for index in kept]), tuple(kept), rate, total)


def load_video(path: str | Path, max_frames: int, fps: float = DEFAULT_FPS) -> tuple[np.ndarray, float]:
    """(frames [T, H, W, 3] uint8, seconds between them): `fps` frames a second, evenly, at most `max_frames`."""
    if max_frames < 1:
        raise InputError("max_frames", got=max_frames, expected="at least 1")
    wanted = checked_rate(fps)

    def evenly(total: int, rate: float) -> np.ndarray:
        count = min(max(int(total / rate * wanted), 1), max_frames, total)
        return np.arange(count) * total // count

    clip = read_clip(Path(path), evenly)
    return clip.frames, 1 / clip.sampled_fps
