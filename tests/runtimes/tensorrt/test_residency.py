"""The bookkeeping against what it promises: every session finds what it last wrote, on memory that really copies."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linmu.errors import DeviceError
from linmu.runtimes.tensorrt.device_state import DeviceState
from linmu.runtimes.tensorrt.residency import Residency, Ticket


class HostMemory:
    """Buffer sets in numpy; new ones hold garbage, as device memory does."""

    def __init__(self):
        self.sets = [np.full(3, -77), np.full(3, -78)]
        self.copies = 0

    def new_set(self) -> int:
        self.sets.append(np.full(3, -79))
        return len(self.sets) - 1

    def copy_set(self, target: int, source: int) -> None:
        self.sets[target][...] = self.sets[source]
        self.copies += 1

    def clear_set(self, target: int) -> None:
        self.sets[target][...] = 0


def step(memory: HostMemory, residency: Residency, ticket: Ticket, token: int) -> None:
    """What an engine does: read one set, write the other, leave rubbish nowhere else."""
    source = residency.enter(ticket)
    memory.sets[1 - source][...] = 10 * memory.sets[source] + token
    residency.swap()


ACTIONS = st.tuples(st.integers(0, 3), st.sampled_from(["step", "zero", "read", "write"]), st.integers(1, 9))


@settings(deadline=None)
@given(st.lists(ACTIONS, max_size=30))
def test_every_session_finds_its_own_state(actions):
    memory = HostMemory()
    residency = Residency(memory)
    tickets, expected = [Ticket() for _ in range(4)], [np.zeros(3, object) for _ in range(4)]
    memory.sets = [array.astype(object) for array in memory.sets]
    for who, action, value in actions:
        if action == "step":
            step(memory, residency, tickets[who], value)
            expected[who] = 10 * expected[who] + value
        elif action == "zero":
            residency.zero(tickets[who])
            expected[who] = np.zeros(3, object)
        elif action == "write":
            memory.sets[residency.enter(tickets[who])][...] = expected[who] = np.full(3, value, object)
        assert np.array_equal(memory.sets[residency.enter(tickets[who])], expected[who])


def test_one_session_never_copies_and_swaps_two_sets():
    memory = HostMemory()
    residency, ticket = Residency(memory), Ticket()
    seen = []
    for token in range(1, 6):
        seen.append(residency.enter(ticket))
        step(memory, residency, ticket, token)
    assert seen == [0, 1, 0, 1, 0] and memory.copies == 0 and len(memory.sets) == 2
    assert memory.sets[residency.now].tolist() == [12345] * 3


def test_a_state_that_cannot_be_copied_in_is_not_taken_for_another():
    """The copy fails when the other state was put aside already: both are found whole afterwards."""
    memory = HostMemory()
    residency, tickets = Residency(memory), (Ticket(), Ticket())
    for token, ticket in enumerate((*tickets, tickets[0]), 1):
        step(memory, residency, ticket, token)
    real, calls = memory.copy_set, []

    def failing(target: int, source: int) -> None:
        calls.append(target)
        if len(calls) == 2:
            memory.sets[target][...] = -99  # half-written
            raise DeviceError("lost")
        real(target, source)

    memory.copy_set = failing
    with pytest.raises(DeviceError):
        residency.enter(tickets[1])
    assert [memory.sets[residency.enter(ticket)].tolist() for ticket in tickets] == [[13] * 3, [2] * 3]


def test_a_run_is_undone_by_its_mark():
    memory = HostMemory()
    residency = Residency(memory)
    waits = []
    sets = SimpleNamespace(cuda=SimpleNamespace(wait=lambda: waits.append(1)))
    state, other = DeviceState(sets, residency), DeviceState(sets, residency)
    mark = state.mark()  # of a state that nothing was written to
    step(memory, residency, state.ticket, 1)
    state.back_to(mark)
    assert memory.sets[residency.enter(state.ticket)].tolist() == [0] * 3
    for token in (2, 3):
        step(memory, residency, state.ticket, token)
    step(memory, residency, other.ticket, 4)
    mark = state.mark()
    step(memory, residency, state.ticket, 5)
    state.back_to(mark)
    assert memory.sets[residency.enter(state.ticket)].tolist() == [23] * 3
    assert memory.sets[residency.enter(other.ticket)].tolist() == [4] * 3 and len(waits) == 2
