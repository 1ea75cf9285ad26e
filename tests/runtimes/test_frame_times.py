from __future__ import annotations

import pytest

from linmu.runtimes.frame_times import FrameSampler, StreamClock


def test_a_clock_keeps_the_distances_of_a_burst_and_goes_on_after_a_reconnection():
    clock = StreamClock()
    clock.connected()
    assert [clock.at(stamp, 0.0) for stamp in (100.0, 100.5, 101.0)] == [0.0, 0.5, 1.0]
    clock.connected()
    assert [clock.at(stamp, 7.0) for stamp in (3.0, 3.5)] == [7.0, 7.5]
    clock.connected()  # this machine's clock is behind the burst
    assert clock.at(50.0, 7.1) == 7.5


def test_a_clock_that_is_set_anew_within_a_connection_or_has_no_time():
    clock = StreamClock()
    assert [clock.at(stamp, now) for stamp, now in ((5.0, 0.0), (5.5, 0.5), (0.0, 1.0), (0.5, 1.5))] == [0, 0.5, 1, 1.5]
    assert clock.at(4000.0, 2.0) == 2.0  # a jump forwards
    assert [clock.at(None, 3.0), clock.at(None, 2.5), clock.at(9.0, 4.0)] == [3.0, 3.0, 4.0]


@pytest.mark.parametrize(
    "fps, rate, expected",
    [(1, 10, [0, 1, 2]), (2, 10, [0, 1, 2, 3, 4, 5]), (2, 2, [0, 1, 2, 3, 4, 5]), (4, 2, [0, 2, 4, 6, 8, 10])],
)
def test_the_first_frame_of_every_interval_is_taken(fps, rate, expected):
    sampler = FrameSampler(fps)
    slots = [sampler.slot(number / rate - 1e-4 * (number > 0)) for number in range(3 * rate)]
    assert [slot for slot in slots if slot is not None] == expected
