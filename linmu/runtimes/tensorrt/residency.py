"""Which session's state lies in the two working buffer sets, without a GPU: bookkeeping over a memory that copies.

The decode step is captured with fixed addresses, so a runner has one pair of working sets. A step reads one set and
writes the other, and they change places: no copy. A second session's state waits in a set of its own and is copied in
when that session goes on; a runner with one session never copies a state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class SetMemory(Protocol):
    """Where buffer sets of one size live."""

    def new_set(self) -> int:
        """A further set's number."""

    def copy_set(self, target: int, source: int) -> None:
        """Copy a whole set."""

    def clear_set(self, target: int) -> None:
        """Fill a set with zeros."""


@dataclass(eq=False)
class Ticket:
    """One session's state: zeros until it is first used, then in a working set or parked in its own."""

    fresh: bool = True
    parked: int | None = None


class Residency:
    """Says which working set holds whose state, and moves states when the session changes."""

    def __init__(self, memory: SetMemory):
        self.memory = memory
        self.now = 0
        self.owner: Ticket | None = None

    def enter(self, ticket: Ticket) -> int:
        """Make `ticket` the owner of the working sets; the set that holds its state."""
        if self.owner is not ticket:
            self._park()
            self.owner = None  # nobody's, should the copy fail: both states then lie in sets of their own
            if not ticket.fresh and ticket.parked is not None:
                self.memory.copy_set(self.now, ticket.parked)
            self.owner = ticket
        if ticket.fresh:
            self.memory.clear_set(self.now)
            ticket.fresh = False
        return self.now

    def swap(self) -> None:
        """The other working set has just been written."""
        self.now = 1 - self.now

    def zero(self, ticket: Ticket) -> None:
        """Forget a state: it is zeros again when it is next used."""
        ticket.fresh = True

    def _park(self) -> None:
        owner = self.owner
        if owner is None or owner.fresh:
            return
        if owner.parked is None:
            owner.parked = self.memory.new_set()
        self.memory.copy_set(owner.parked, self.now)
