from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from linmu.errors import InputError
from linmu.runtimes.sampling import Sampling
from linmu.runtimes.session import load
from tests.clips import write_clip
from tests.runtimes.streams import tcp_server
from tests.runtimes.watching import QUESTION
from tests.tiny import tiny_video

LONG = {"sampling": Sampling(logit_bias={2: -100.0}), "max_new_tokens": 12}  # without the demo's end token


@pytest.fixture(scope="module")
def session(demo_bundle):
    with load(demo_bundle, threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """20 seconds, two frames a second."""
    return write_clip(tmp_path_factory.mktemp("clip") / "c.mp4", list(tiny_video(1, 40, (64, 48))), rate=2)


@pytest.mark.parametrize("background", [True, False])
def test_a_file_is_read_to_its_end_and_asked(background, session, clip):
    with session.watch(clip, fps=2.0, background=background) as watcher:
        assert watcher.wait(60)
        counts = watcher.counts
        assert (counts.frames, counts.seconds, counts.reader.dropped) == (40, 19.5, 0)
        assert counts.state_bytes == session.state.nbytes
        first, second = (watcher.ask(QUESTION, max_new_tokens=5) for _ in range(2))
        assert first.generation.token_ids == second.generation.token_ids and first.counts.frames == 40


def test_questions_at_fixed_times_hear_the_same_frames_every_time(session, clip):
    told = []
    for _ in range(2):
        with session.watch(clip, fps=2.0, keep="restart:6s:2s", background=False) as watcher:
            answers = list(watcher.answers(QUESTION, 4.0, max_new_tokens=4))
        told.append([(a.counts.seconds, a.counts.frames, a.generation.token_ids) for a in answers])
    assert told[0] == told[1]
    assert [seconds for seconds, *_ in told[0]] == [4.0, 8.0, 12.0, 16.0, 19.5]


def test_reading_goes_on_between_the_steps_of_an_answer(session, clip):
    with session.watch(clip, fps=2.0, background=False) as watcher:
        moments = watcher.moments(4.0)  # reads only when it is asked for the next moment
        before = next(moments).frames
        answer = watcher.ask(QUESTION, **LONG)
        steps = len(answer.generation.token_ids)
        assert answer.counts.frames == before
        assert 1 <= watcher.counts.frames - before <= steps
        moments.close()


def test_an_answer_is_the_same_while_frames_are_read(session, clip, tmp_path):
    with session.watch(clip, fps=2.0, background=False) as watcher:
        moments = watcher.moments(4.0)
        next(moments)
        watcher.save(tmp_path / "s.safetensors")
        busy = watcher.ask(QUESTION, **LONG)
        assert watcher.counts.frames > busy.counts.frames
        moments.close()
    session.state.load(tmp_path / "s.safetensors")
    assert session.generate(QUESTION, **LONG).token_ids == busy.generation.token_ids


def test_threads_ask_at_once(session, clip):
    answers = []
    with session.watch(clip, fps=2.0) as watcher:
        while not watcher.counts.frames:
            time.sleep(0.01)
        threads = [
            threading.Thread(target=lambda: answers.append(watcher.ask(QUESTION, max_new_tokens=3))) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert watcher.wait(60) and watcher.counts.frames == 40
    assert len(answers) == 4


def test_the_session_waits_for_the_watcher(session, clip):
    session.reset()
    session.generate("What is this?", max_new_tokens=1)
    before = session.state.copy()
    with session.watch(clip) as watcher:
        for call in (lambda: session.generate("x"), session.reset, session.close, lambda: session.state.copy()):
            with pytest.raises(InputError, match="in use by a watcher"):
                call()
    with pytest.raises(InputError, match="the watcher is closed"):
        watcher.ask(QUESTION)
    after = session.state.copy()
    assert after.tokens == before.tokens
    assert all(np.array_equal(before.tensors[name], tensor) for name, tensor in after.tensors.items())


def test_the_file_of_a_watched_state_is_asked_by_a_session(session, clip, tmp_path):
    with session.watch(clip, fps=2.0) as watcher:
        watcher.wait(60)
        expected = watcher.ask(QUESTION, max_new_tokens=6).generation.token_ids
        watcher.save(tmp_path / "s.safetensors")
    session.state.load(tmp_path / "s.safetensors")
    assert session.generate(QUESTION, max_new_tokens=6).token_ids == expected


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"fps": 0}, "frames per second"),
        ({"fps": float("nan")}, "frames per second"),
        ({"speed": -1}, "speed of watching"),
        ({"queue_frames": 0}, "queue_frames"),
        ({"keep": "nothing"}, "expected decay"),
        ({"keep": "restart:1s:0"}, "at least a frame, 5"),
        ({"rate": 3}, "got rate"),
        ({"max_pixels": 100}, "takes any size"),
    ],
)
def test_bad_options_leave_the_session_free(options, expected, session, clip):
    with pytest.raises(InputError, match=expected), session.watch(clip, **{"fps": 0.2, **options}):
        pass
    with pytest.raises(InputError, match="a speed for a live stream"), session.watch("udp://127.0.0.1:1", speed=1.0):
        pass
    session.reset()


def test_a_source_that_fails_is_told(session, tmp_path):
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"not a video" * 100)
    with session.watch(bad) as watcher:
        with pytest.raises(InputError, match="cannot read the video"):
            watcher.wait(30)
        with pytest.raises(InputError, match="cannot read the video"):
            watcher.ask(QUESTION)
        with pytest.raises(InputError, match="cannot read the video"):
            list(watcher.answers(QUESTION, 1.0))


def test_a_stream_that_dies_and_comes_back_goes_on_in_one_state(session, tmp_path):
    data = write_clip(tmp_path / "c.ts", list(tiny_video(3, 10, (64, 48))), rate=2).read_bytes()
    with (
        tcp_server([data, data]) as address,
        session.watch(address, fps=2.0, pause_s=0.05, queue_frames=64) as watcher,
    ):
        while watcher.counts.frames < 15:
            time.sleep(0.01)
            watcher.wait(0)
        counts = watcher.ask(QUESTION, max_new_tokens=2).counts
    assert counts.reader.reconnects >= 1 and counts.reader.dropped == 0
