"""Watching a stream: a thread reads frames, the model reads them into a state, and questions are asked on copies."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from linmu.errors import InputError, LinmuError
from linmu.formats.video_stream import watch_source
from linmu.runtimes.answer import Generation, Piece
from linmu.runtimes.frame_reader import FrameReader, Pace, ReaderCounts
from linmu.runtimes.state import SessionState
from linmu.runtimes.watched_stream import WatchedStream, WatchOptions

if TYPE_CHECKING:
    from typing import Self  # Python 3.11

IDLE_S = 0.05  # how long a thread looks for a frame before it looks for something else


@dataclass(frozen=True)
class WatchCounts:
    """What a watcher did up to now.

    seconds: the time in the stream of the newest frame that a question sees; frames: that were read; fps: of them a
    second of this machine's time; restarts: of the policy; state_bytes: of all states; reader: see ReaderCounts.
    """

    seconds: float
    frames: int
    fps: float
    restarts: int
    state_bytes: int
    reader: ReaderCounts


@dataclass(frozen=True)
class WatchAnswer:
    """An answer, and the counts of the moment that it is about."""

    generation: Generation
    counts: WatchCounts

    @property
    def text(self) -> str:
        """The answer."""
        return self.generation.text


class Asked(Protocol):
    """The session that answers: its state becomes a copy of the stream's for every question."""

    state: SessionState

    def stream(self, prompt: str | list[dict[str, Any]], **options: Any) -> Generator[Piece]:
        """See Session."""


class Watcher:
    """Reads a stream while its context is open; may be asked by any thread, one question after the other.

    One call of the model at a time: a frame, a span of frames, a piece of a question, or a step of an answer. Between
    two steps of an answer one call is made for frames that wait, so neither stands still for longer than a call. A
    question sees the frames that the model has taken, those of an unfinished span included, not those in the queue.
    """

    def __init__(self, source: str | os.PathLike[str], stream: WatchedStream, asked: Asked, options: WatchOptions):
        self._stream, self._asked = stream, asked
        capacity = options.queue_frames or 2 * stream.clip.pictures
        watched = watch_source(source)
        if watched.live and options.speed is not None:
            raise InputError("a speed for a live stream", got=options.speed, fix="leave it out: it is for files")
        pace = Pace(capacity, options.speed, options.pause_s, options.patience_s)
        self.reader = FrameReader(watched, options.fps, stream.fit, pace)
        self._model = threading.Lock()  # whoever has it runs the model
        self._quiet = threading.Condition()
        self._others = 0  # questions that wait or are answered, and loops that read frames themselves
        self._closing = threading.Event()
        self._fault: LinmuError | None = None
        self._background = options.background
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)
        self._began = 0.0

    def __enter__(self) -> Self:
        """Begin to read."""
        self._began = time.monotonic()
        self.reader.start()
        if self._background:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop reading. The model is free afterwards."""
        self._closing.set()
        self.reader.close()
        with self._quiet:
            self._quiet.notify_all()
        if self._background:
            self._thread.join()

    @property
    def ended(self) -> bool:
        """Whether everything that there was has been read."""
        return self._closing.is_set() or (self.reader.ended and not self.reader.waiting)

    @property
    def counts(self) -> WatchCounts:
        """What was done up to now."""
        stream, passed = self._stream, max(time.monotonic() - self._began, 1e-9)
        rate = stream.frames / passed
        return WatchCounts(stream.seconds, stream.frames, rate, stream.restarts, stream.state_bytes, self.reader.counts)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until everything was read; False when that took longer. Raises what ended a stream by an error."""
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while not self.ended and (end is None or time.monotonic() < end):
            self._raise_fault()
            if self._background:
                self._closing.wait(IDLE_S)
            else:
                self.read_next(IDLE_S)
        with self._model:
            self._raise_fault()
            return self.ended

    def ask(self, question: str | list[dict[str, Any]], **options: Any) -> WatchAnswer:
        """Answer a question about what was seen; options as in `Session.stream`. Reading goes on meanwhile.

        Every question is asked of the stream alone: none hears of another. Raises InputError before the first frame.
        """
        with self._others_wait(), self._model:
            return self._answer(question, options)

    def moments(self, every_s: float) -> Iterator[WatchCounts]:
        """The counts after every `every_s` seconds of the stream, and at its end, when its frames up to there are read.

        Whoever iterates reads the frames meanwhile. With `background=False` nobody else does, so a file stops at the
        same frames every time. Raises what ended the stream, if it was an error.
        """
        if not 0 < every_s < float("inf"):
            raise InputError("seconds between questions", got=every_s, expected="more than 0")
        with self._others_wait():
            told, due = 0, every_s
            while not self.ended:
                if self.read_next(IDLE_S) and self._stream.seconds >= due:
                    told, due = self._stream.frames, (self._stream.seconds // every_s + 1) * every_s
                    yield self.counts
            if self._stream.frames > told:
                yield self.counts
            self._raise_fault()

    def answers(self, question: str | list[dict[str, Any]], every_s: float, **options: Any) -> Iterator[WatchAnswer]:
        """Ask at each of `moments`; options as in `Session.stream`."""
        for _ in self.moments(every_s):
            yield self.ask(question, **options)

    def read_next(self, timeout_s: float) -> bool:
        """Read one frame, and what is due with it; False when none came in time."""
        frame = self.reader.take(timeout_s)
        if frame is not None:
            with self._model:
                while self._stream.work():
                    pass
                self._stream.push(frame)
                while self._stream.work():
                    pass
        return frame is not None

    def save(self, path: str | Path) -> None:
        """Write the state as a file; who loads it (`linmu run --load-state`) asks about the stream."""
        with self._others_wait(), self._model:
            self._stream.copy_to(self._asked.state)
            self._asked.state.save(path)

    def _answer(self, question: str | list[dict[str, Any]], options: dict[str, Any]) -> WatchAnswer:
        """Answer on a copy; between its steps the frames that wait are read."""
        counts = self.counts
        self._stream.copy_to(self._asked.state)
        pieces = []
        with closing(self._asked.stream(question, **options)) as stream:
            for piece in stream:
                pieces.append(piece)
                if piece.finish_reason is None:
                    self._one_call()
        return WatchAnswer(Generation.of(pieces), counts)

    def _one_call(self) -> bool:
        """One call of the model for frames: a span that is due, or else a frame that waits."""
        if self._stream.work():
            return True
        frame = self.reader.take()
        if frame is not None:
            self._stream.push(frame)
        return frame is not None

    @contextmanager
    def _others_wait(self) -> Iterator[None]:
        """Keep the watcher's own thread from the model meanwhile."""
        if self._closing.is_set():
            raise InputError("the watcher is closed", fix="watch again")
        if self._fault is not None or not self._stream.frames:
            self._raise_fault()
        with self._quiet:
            self._others += 1
        try:
            yield
        finally:
            with self._quiet:
                self._others -= 1
                self._quiet.notify_all()

    def _run(self) -> None:
        """Read frames whenever nobody else uses the model."""
        fault: LinmuError | None = InputError("watching stopped", got="a fault of linmu", fix="report it")
        try:
            while not self._closing.is_set():
                with self._quiet:
                    self._quiet.wait_for(lambda: not self._others or self._closing.is_set())
                with self._model:
                    busy = not self._others and self._one_call()
                if not busy:
                    self._closing.wait(IDLE_S / 5)
            fault = None
        except LinmuError as error:  # a broken graph: whoever asks next is told
            fault = error
        finally:
            self._fault = fault

    def _raise_fault(self) -> None:
        fault = self._fault or self.reader.error
        if fault is not None:
            raise fault
