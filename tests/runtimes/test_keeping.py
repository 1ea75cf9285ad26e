from __future__ import annotations

import numpy as np
import pytest

from linmu.errors import InputError
from linmu.runtimes.keeping import Decay, Restart, checked_keep
from linmu.runtimes.session import load
from tests.runtimes.watching import FPS, asked, feed, stream_of
from tests.tiny import tiny_video


@pytest.fixture(scope="module")
def session(demo_bundle):
    with load(demo_bundle, threads=1) as opened:
        yield opened


def test_policies_have_names():
    assert checked_keep("decay") == Decay()
    assert checked_keep("restart") == Restart(600, 60)
    assert checked_keep("restart:10m:30s") == Restart(600, 30)
    assert checked_keep(Restart(8, 2)) == Restart(8, 2)


@pytest.mark.parametrize("keep", ["", "forget", "decay:3", "restart:3", "restart:3:2", "restart:0:0", "restart:a:b", 3])
def test_unknown_policies_are_refused(keep):
    with pytest.raises(InputError, match="expected"):
        checked_keep(keep)


@pytest.mark.parametrize("overlap, begins", [(2, {5: 0, 8: 0, 9: 6, 14: 6, 15: 12, 30: 24}), (0, {8: 0, 9: 8, 18: 16})])
def test_a_restarted_state_is_one_that_began_later(overlap, begins, session):
    """Every 8 frames; a question sees those since the younger state began, and no others."""
    frames, keep = tiny_video(1, 32), Restart(8 / FPS, overlap / FPS)
    for count, begin in begins.items():
        stream, later = stream_of(session, keep), stream_of(session, keep)
        feed(stream, frames[:count])
        feed(later, frames[begin:count])
        assert np.array_equal(asked(stream, session), asked(later, session)), count


def test_a_stream_that_was_away_for_long_starts_anew(session):
    frames, keep = tiny_video(2, 6), Restart(8 / FPS, 2 / FPS)
    stream, later = stream_of(session, keep), stream_of(session, keep)
    feed(stream, frames, [0, 1, 2, 3, 900, 901])
    feed(later, frames[4:])
    assert np.array_equal(asked(stream, session), asked(later, session))


@pytest.mark.parametrize("keep, states", [(Decay(), 1), (Restart(8, 2), 2), (Restart(8, 0), 1)])
def test_memory_does_not_grow(keep, states, session):
    stream = stream_of(session, keep)
    sizes, waiting = set(), set()
    for number, frame in enumerate(tiny_video(3, 40)):
        feed(stream, frame[None], [number])
        sizes.add(stream.state_bytes)
        waiting.add(len(stream._states.old.waiting))
    assert sizes == {states * session.state.nbytes}
    assert max(waiting) < stream.clip.pictures
