"""When frames are: one clock over reconnections, and which frames are sampled."""

from __future__ import annotations

from linmu.processing.video import CLOCK

MOST_GAP_S = 10.0  # by which a stream's own clock may jump; beyond it, it was set anew


class StreamClock:
    """Seconds of a live stream since its first frame, ascending, whatever its own clock does.

    Within a connection the stream's clock counts, so that frames that come in a burst keep their distances. After a
    reconnection, or a jump, time goes on from `now`, seconds of this machine since the first frame.
    """

    def __init__(self) -> None:
        self.latest = 0.0
        self._last: float | None = None  # the stream's own clock at the last frame
        self._offset = 0.0

    def connected(self) -> None:
        """A connection begins: its clock is another one."""
        self._last = None

    def at(self, stamp: float | None, now: float) -> float:
        """When a frame is that has `stamp` on the stream's clock (None: none) and is here `now`."""
        if stamp is None:
            self._last = None
            self.latest = max(self.latest, now)
            return self.latest
        if self._last is None or not 0 <= stamp - self._last <= MOST_GAP_S:
            self._offset = max(self.latest, now) - stamp
        self._last = stamp
        self.latest = max(self.latest, stamp + self._offset)
        return self.latest


class FrameSampler:
    """Takes the first frame of every 1 / fps seconds."""

    def __init__(self, fps: float):
        self.fps, self._last = fps, -1

    def slot(self, seconds: float) -> int | None:
        """The number of the interval that a frame is taken for; None when it is not taken."""
        slot = int((seconds + CLOCK) * self.fps)
        if slot <= self._last:
            return None
        self._last = slot
        return slot
