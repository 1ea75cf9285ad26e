"""What a watched stream forgets: policies with names, each in constant memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from linmu.errors import InputError
from linmu.runtimes.watched_state import ReadableFrame, WatchedState
from linmu.system.units import seconds_of

POLICIES = "decay, restart or restart:SECONDS:OVERLAP (restart:10m:1m)"


@dataclass(frozen=True)
class Decay:
    """One state reads everything; what it forgets is up to its decays."""

    name = "decay"


@dataclass(frozen=True)
class Restart:
    """Starts again every `every_s` seconds; a second state reads along for `overlap_s` seconds before it takes over.

    A question sees the last `overlap_s` to `every_s` seconds, or all of a shorter stream. Raises InputError unless
    0 <= overlap_s <= every_s / 2.
    """

    every_s: float = 600.0
    overlap_s: float = 60.0
    name = "restart"

    def __post_init__(self) -> None:
        if not 0 < self.every_s < float("inf"):
            raise InputError("seconds between restarts", got=self.every_s, expected="more than 0")
        if not 0 <= self.overlap_s <= self.every_s / 2:
            raise InputError(
                "overlap of restarts in seconds",
                got=self.overlap_s,
                expected=f"0 to {self.every_s / 2:g}",
            )


Keep = Decay | Restart


def checked_keep(keep: str | Keep) -> Keep:
    """A policy from its name; InputError on an unknown one."""
    if isinstance(keep, Decay | Restart):
        return keep
    name, *values = keep.split(":") if isinstance(keep, str) else ("",)
    if name == Decay.name and not values:
        return Decay()
    if name == Restart.name and len(values) in (0, 2):
        return Restart(*(seconds_of(value, "the policy restart") for value in values))
    raise InputError("what a stream forgets (keep)", got=repr(keep)[:60], expected=POLICIES)


class KeptStates:
    """The states of one policy: one, and with `restart` a younger one that reads along before it takes over."""

    def __init__(self, new_state: Callable[[], WatchedState], keep: Keep, fps: float):
        if isinstance(keep, Restart) and round(keep.every_s * fps) < 1:
            raise InputError("seconds between restarts", got=keep.every_s, expected=f"at least a frame, {1 / fps:g}")
        self.old, self._keep, self._fps = new_state(), keep, fps
        self._spare = new_state() if isinstance(keep, Restart) and keep.overlap_s else None
        self._reads_along = False
        self.restarts = 0

    @property
    def nbytes(self) -> int:
        """Bytes of all states."""
        return sum(state.state.nbytes for state in (self.old, self._spare) if state is not None)

    def add(self, frame: ReadableFrame) -> None:
        """Give a frame to the states that read now; whole spans of them are then due."""
        slot = frame.part.slots[0]
        if not self.old.frames:
            self.old.start(slot)
        if isinstance(self._keep, Restart):
            self._renew(slot, self._keep)
        for state in self._reading():
            state.waiting.append(frame)

    def work(self) -> bool:
        """Append one span that is due, the older state's first; False when there is none."""
        due = next((state for state in self._reading() if state.due), None)
        if due is not None:
            due.append()
        return due is not None

    def _reading(self) -> list[WatchedState]:
        return [self.old] if self._spare is None or not self._reads_along else [self.old, self._spare]

    def _renew(self, slot: int, keep: Restart) -> None:
        whole, alone = round(keep.every_s * self._fps), round((keep.every_s - keep.overlap_s) * self._fps)
        while slot - self.old.begin >= whole:
            if self._spare is not None and self._reads_along:
                self.old, self._spare = self._spare, self.old
                self._reads_along = False
            else:  # no overlap, or no frame came for longer than it
                self.old.start(slot)
            self.restarts += 1
        if self._spare is not None and not self._reads_along and slot - self.old.begin >= alone:
            self._spare.start(slot)
            self._reads_along = True
