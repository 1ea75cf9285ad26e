"""What tests of watching share: sessions whose clips have frames of one size, and streams without threads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from linmu.processing.open_clip import SampledFrame
from linmu.processing.settings import CanvasSettings, GridSettings
from linmu.runtimes.keeping import Decay, Keep
from linmu.runtimes.session import Session
from linmu.runtimes.watched_stream import WatchedStream, WatchOptions

FPS = 2.0
QUESTION = "What moves?"


def with_steady_frames(session: Session) -> Session:
    """Frames of one size however many a clip has (Qwen3-VL), and tiles as the tiny tower takes them (InternVL)."""
    settings = session.processor.settings
    frames = settings.video.frames
    if isinstance(frames, GridSettings):
        frames = replace(frames, volume=False)
    if isinstance(frames, CanvasSettings):
        frames = replace(frames, height=settings.image.height, width=settings.image.width)
    settings = replace(settings, video=replace(settings.video, frames=frames))
    session.processor = replace(session.processor, settings=settings)
    return session


def stream_of(session: Session, keep: Keep | None = None, **options) -> WatchedStream:
    wanted = WatchOptions(**{"fps": FPS, **options})
    return WatchedStream(session.bundle, session.runner, session.processor, keep or Decay(), wanted)


def feed(stream: WatchedStream, frames: np.ndarray, slots=None) -> None:
    for slot, frame in zip(slots or range(len(frames)), frames, strict=True):
        stream.push(SampledFrame(stream.fit(frame), slot))
        while stream.work():
            pass


def asked(stream: WatchedStream, session: Session, question: str = QUESTION) -> np.ndarray:
    """Logits behind a question about the stream."""
    stream.copy_to(session.state)
    return session.prefill(session.prepare(question)).copy()


def as_clip(session: Session, frames: np.ndarray, question: str = QUESTION) -> np.ndarray:
    """Logits behind the same question about the frames as one clip."""
    session.reset()
    return session.prefill(session.prepare(question, video=frames, video_fps=FPS)).copy()
