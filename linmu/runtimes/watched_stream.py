"""The model's side of watching: frames in, spans appended to states, a copy to ask. No thread of its own.

One call of the runner at a time, each by whoever runs the model: a Watcher, or the server's model thread between the
decode steps of others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from linmu.errors import InputError
from linmu.formats.bundle import Bundle
from linmu.processing import Processor
from linmu.processing.open_clip import OpenClip, SampledFrame
from linmu.processing.video import checked_rate
from linmu.runtimes.base import Runner
from linmu.runtimes.keeping import Keep, KeptStates, Restart
from linmu.runtimes.state import SessionState
from linmu.runtimes.watched_state import FrameEncoder, WatchedState


@dataclass(frozen=True)
class WatchOptions:
    """How a stream is watched (`Session.watch`).

    fps: frames a second to read; speed: at which a file is played, dropping late frames (None: as fast as the model
    reads, dropping none); system: a system prompt; max_pixels: of a frame (Qwen); queue_frames: that may wait for the
    model (None: two spans); patience_s: for a packet of a live stream; pause_s: before the first attempt to reconnect;
    background: frames are read all the time, not only by who iterates over `moments` or waits.
    """

    fps: float = 1.0
    speed: float | None = None
    system: str | None = None
    max_pixels: int | None = None
    queue_frames: int | None = None
    patience_s: float = 10.0
    pause_s: float = 1.0
    background: bool = True

    def __post_init__(self) -> None:
        checked_rate(self.fps)
        for name in ("speed", "patience_s", "pause_s"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1e6:
                raise InputError(f"{name} of watching", got=value, expected="more than 0")
        if self.queue_frames is not None and self.queue_frames < 1:
            raise InputError("queue_frames of watching", got=self.queue_frames, expected="at least 1")


def watch_options(options: Mapping[str, Any]) -> WatchOptions:
    """WatchOptions from keyword arguments; InputError naming one that does not exist."""
    known = [field.name for field in fields(WatchOptions)]
    if unknown := sorted(set(options) - set(known)):
        raise InputError("an option of watching", got=", ".join(unknown), expected=", ".join(known))
    return WatchOptions(**options)


class WatchedStream:
    """The states of one stream under one policy. `push`, `work` and `copy_to` each bound what they cost.

    fit: makes a frame [height, width, 3] uint8 as small as the model sees it, in any thread; clip.pictures: sampled
    frames of a span.
    """

    def __init__(self, bundle: Bundle, runner: Runner, processor: Processor, keep: Keep, options: WatchOptions):
        span = bundle.manifest.model.mmate.max_span_frames
        announced = round(keep.every_s * options.fps) if isinstance(keep, Restart) else None
        self.clip = OpenClip(processor, options.fps, span, announced, options.system, options.max_pixels)
        self._encoder = FrameEncoder(runner, self.clip)
        self._states = KeptStates(lambda: WatchedState(runner, bundle, self.clip), keep, options.fps)
        self.fit, self.frames, self._slot = self.clip.fit, 0, -1

    @property
    def state_bytes(self) -> int:
        """Bytes of all states: the same whatever was read."""
        return self._states.nbytes

    @property
    def seconds(self) -> float:
        """The time in the stream of the newest frame that a question sees; 0 before the first."""
        return max(self._slot, 0) / self.clip.fps

    @property
    def restarts(self) -> int:
        """How often the policy started again."""
        return self._states.restarts

    def push(self, frame: SampledFrame) -> None:
        """Take a frame: one call of the vision graph at most. `work` before the next one while it finds some."""
        encoded = self._encoder.push(frame)
        self.frames, self._slot = self.frames + 1, frame.slot
        if encoded is not None:
            self._states.add(encoded)

    def work(self) -> bool:
        """Append one span to one state: one prefill; False when none is due."""
        return self._states.work()

    def copy_to(self, state: SessionState) -> None:
        """Make `state` what the stream is up to its newest frame: at most one span and one frame are read.

        `Session` and TurnMaker then take a question for the rest of the user's turn. Raises InputError before the
        first frame.
        """
        self._states.old.copy_to(state, self._encoder.rest())
