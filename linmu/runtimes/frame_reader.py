"""A thread that reads a stream, samples it, and hands frames on through a bounded queue."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from linmu.errors import InputError, LinmuError
from linmu.formats.video_file import Screen, opened_video
from linmu.formats.video_stream import WatchSource, live_frames
from linmu.processing.open_clip import SampledFrame
from linmu.runtimes.frame_times import FrameSampler, StreamClock

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0  # between attempts to reconnect
PATIENCE_S = 10.0  # for a packet of a live stream


@dataclass(frozen=True)
class ReaderCounts:
    """What a reader did: frames decoded, sampled, dropped because they were late; packets damaged; reconnections.

    seconds: the time in the stream of the newest frame that was decoded.
    """

    decoded: int = 0
    sampled: int = 0
    dropped: int = 0
    damaged: int = 0
    reconnects: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Pace:
    """How frames are handed on: capacity: of the queue, in frames; speed: a file's seconds a second, None: as wanted.

    pause_s: before the first attempt to reconnect; it doubles up to LONGEST_PAUSE_S. patience_s: for a packet.
    """

    capacity: int
    speed: float | None = None
    pause_s: float = FIRST_PAUSE_S
    patience_s: float = PATIENCE_S


class FrameReader:
    """Reads one source in a thread of its own, from `start` until the file ends, an error, or `close`.

    A live stream, and a file at a speed, do not wait: when the queue is full its oldest frame is dropped. A file
    without a speed waits. A live stream that breaks is opened again and again; one that cannot be opened at first is
    an error, which `error` holds.
    """

    def __init__(self, source: WatchSource, fps: float, fit: Callable[[np.ndarray], np.ndarray], pace: Pace):
        self.source, self._fit, self._pace = source, fit, pace
        self._sampler, self._clock = FrameSampler(fps), StreamClock()
        self._queue: deque[SampledFrame] = deque()
        self._changed, self._closing = threading.Condition(), threading.Event()
        self._counts = ReaderCounts()
        self.error: LinmuError | None = None
        self.ended = False
        self._began = 0.0
        self._thread = threading.Thread(target=self._run, name=f"reader of {source}", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._began = time.monotonic()
        self._thread.start()

    def close(self, wait_s: float = 2.0) -> None:
        """Stop reading; a thread that waits for a packet ends when its patience does."""
        self._closing.set()
        with self._changed:
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(wait_s)

    @property
    def counts(self) -> ReaderCounts:
        """What was done up to now."""
        with self._changed:
            return self._counts

    @property
    def waiting(self) -> int:
        """Frames in the queue."""
        return len(self._queue)

    def take(self, timeout_s: float = 0.0) -> SampledFrame | None:
        """The next frame; None when none came in time, or nothing comes any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self.ended or self._closing.is_set(), timeout_s)
            if not self._queue:
                return None
            self._changed.notify_all()
            return self._queue.popleft()

    def _run(self) -> None:
        fault: LinmuError | None = InputError(f"reading {self.source} stopped", got="a fault of linmu", fix="report it")
        try:
            self._read_live() if self.source.live else self._read_file()
            fault = None
        except LinmuError as error:
            fault = error
        finally:
            with self._changed:
                self.error, self.ended = fault, True
                self._changed.notify_all()

    def _read_file(self) -> None:
        with opened_video(Path(self.source.address)) as (container, stream):
            screen, first = Screen(stream), None
            rate = float(stream.average_rate or stream.guessed_rate or 0)
            for number, frame in enumerate(container.decode(stream)):
                stamp = number / rate if frame.time is None and rate else float(frame.time or 0.0)
                first = stamp if first is None else first
                if not self._until(stamp - first):
                    return
                self._frame(stamp - first, screen, frame)

    def _until(self, seconds: float) -> bool:
        """Wait until a file's frame is shown; False when reading is over."""
        if self._pace.speed is not None:
            wait = self._began + seconds / self._pace.speed - time.monotonic()
            self._closing.wait(max(wait, 0.0))
        return not self._closing.is_set()

    def _read_live(self) -> None:
        pause, seen = self._pace.pause_s, False
        while not self._closing.is_set():
            try:
                self._clock.connected()
                for _ in self._connection():
                    pause, seen = self._pace.pause_s, True
            except InputError:
                if not seen:
                    raise
            if not seen:
                raise InputError(f"no frames in {self.source}", expected="a stream that shows pictures")
            if self._closing.wait(pause):
                return
            pause = min(2 * pause, LONGEST_PAUSE_S)
            self._count(reconnects=1)

    def _connection(self) -> Iterator[None]:
        """Frames of one connection, until it ends or reading is over."""
        for item in live_frames(self.source, self._pace.patience_s):
            if self._closing.is_set():
                return
            if item is None:
                self._count(damaged=1)
                continue
            if not self.counts.decoded:
                self._began = time.monotonic()  # time begins with the first frame
            seconds = self._clock.at(item.seconds, time.monotonic() - self._began)
            self._frame(seconds, item.screen, item.frame)
            yield

    def _frame(self, seconds: float, screen: Screen, frame: object) -> None:
        self._count(decoded=1, seconds=seconds)
        slot = self._sampler.slot(seconds)
        if slot is not None:
            self._put(SampledFrame(self._fit(screen.show(frame)), slot))

    def _put(self, frame: SampledFrame) -> None:
        waits = not self.source.live and self._pace.speed is None
        with self._changed:
            if waits:
                self._changed.wait_for(lambda: len(self._queue) < self._pace.capacity or self._closing.is_set())
            dropped = 0
            while len(self._queue) >= self._pace.capacity:
                self._queue.popleft()
                dropped += 1
            self._queue.append(frame)
            self._changed.notify_all()
        self._count(sampled=1, dropped=dropped)

    def _count(self, seconds: float | None = None, **more: int) -> None:
        with self._changed:
            now = self._counts
            changed = {name: getattr(now, name) + count for name, count in more.items()}
            self._counts = replace(now, seconds=now.seconds if seconds is None else seconds, **changed)
