"""A state that read frames one span at a time, against a session that read the same frames as one clip."""

from __future__ import annotations

import numpy as np
import pytest

from linmu.errors import InputError
from linmu.runtimes.keeping import Restart
from linmu.runtimes.session import load
from tests.runtimes.sessions import gap
from tests.runtimes.watching import FPS, QUESTION, as_clip, asked, feed, stream_of, with_steady_frames
from tests.tiny import tiny_video

SPAN = 3  # frames of a span in tiny bundles; the demo's has 8


@pytest.fixture(params=["qwen2_5_vl", "qwen3_vl", "internvl", "smolvlm"])
def session(request, bundle_of, demo_bundle):
    """A tiny model, or the demo (SmolVLM), of every family that takes clips."""
    family = request.param
    with load(demo_bundle if family == "smolvlm" else bundle_of(family, max_span_frames=SPAN), threads=1) as opened:
        yield with_steady_frames(opened)


@pytest.mark.parametrize("count", [1, 6, 11])
def test_frames_read_one_by_one_are_the_clip_of_them(session, count):
    """Tokens, positions, tensors and logits, and those of a further turn behind the answer."""
    frames = tiny_video(1, count)
    stream = stream_of(session, Restart(count / FPS, 0))  # SmolVLM tells the number of frames before them
    feed(stream, frames)
    logits = asked(stream, session)
    state = session.state.copy()
    expected = as_clip(session, frames)
    whole = session.state.copy()
    assert (state.tokens, state.position) == (whole.tokens, whole.position)
    assert gap(logits, expected) < 1e-4
    for name, tensor in whole.tensors.items():
        assert np.abs(state.tensors[name] - tensor).max() <= 1e-4 * np.abs(tensor).max(), name
    assert state.conversation.messages == whole.conversation.messages
    assert state.conversation.text == whole.conversation.text
    assert gap(further(session, state), further(session, whole)) < 1e-4


def further(session, snapshot):
    """Logits of a further turn behind the answer "up", as the template writes it."""
    session.state.restore(snapshot)
    answer = " up" if session.bundle.manifest.model.family == "smolvlm" else "up"
    for token in session.processor.tokenizer.encode(answer, add_special_tokens=False).ids:
        session.step(token)
    turn = session.prepare("And then?")
    assert turn.notice is None
    return session.prefill(turn).copy()


def test_asking_leaves_the_stream_as_it_was(session):
    frames = tiny_video(2, 8)
    stream, other = stream_of(session), stream_of(session)
    feed(stream, frames[:5])
    asked(stream, session)
    asked(stream, session, "Why?")
    feed(stream, frames[5:], range(5, 8))
    feed(other, frames)
    assert np.array_equal(asked(stream, session), asked(other, session))


def test_a_file_of_the_state_is_asked_like_the_stream(session, tmp_path):
    stream = stream_of(session)
    feed(stream, tiny_video(3, 4))
    expected = asked(stream, session)
    stream.copy_to(session.state)
    session.state.save(tmp_path / "s.safetensors")
    session.reset()
    session.state.load(tmp_path / "s.safetensors")
    assert session.messages == [{"role": "user", "content": [{"type": "video"}]}]
    assert np.array_equal(session.prefill(session.prepare(QUESTION)), expected)
    assert session.messages[0]["content"][1] == {"type": "text", "text": QUESTION}


def test_dropped_frames_leave_a_gap_in_time_only(session):
    """Three frames with a hole between them: as many tokens, other times where the family tells or counts them."""
    frames = tiny_video(4, 6)
    whole, holed = stream_of(session), stream_of(session)
    feed(whole, frames)
    feed(holed, frames, [0, 1, 2, 3, 40, 41])
    steady, late = asked(whole, session), asked(holed, session)
    family = session.bundle.manifest.model.family
    assert np.array_equal(steady, late) == (family == "internvl")  # it numbers frames and tells no times
    assert holed.seconds == 41 / FPS


def test_what_cannot_be_asked_is_refused(session):
    stream = stream_of(session)
    with pytest.raises(InputError, match="before the first frame"):
        stream.copy_to(session.state)
    feed(stream, tiny_video(5, 2))
    stream.copy_to(session.state)
    before = session.state.copy()
    with pytest.raises(InputError, match="expected a question of the user"):
        session.prepare("Who?", system="Be brief.")
    with pytest.raises(InputError, match="the prompt is empty"):
        session.prepare(" ")
    assert session.state.copy().tokens == before.tokens
    assert session.prepare(QUESTION).conversation.open_end is None


def test_a_system_prompt_stands_before_the_frames(session):
    frames = tiny_video(6, 3)
    stream = stream_of(session, Restart(3 / FPS, 0), system="Be brief.")
    feed(stream, frames)
    logits = asked(stream, session)
    session.reset()
    turn = session.prepare(QUESTION, video=frames, video_fps=FPS, system="Be brief.")
    assert gap(logits, session.prefill(turn)) < 1e-4


def test_qwen3_sizes_frames_as_for_a_clip_of_one_span(bundle_of):
    """Its pixel limits count all frames of a clip: a clip of another length has frames of another size."""
    with load(bundle_of("qwen3_vl", max_span_frames=SPAN), threads=1) as session:
        stream = stream_of(session)
        frames = tiny_video(7, stream.clip.pictures)
        feed(stream, frames)
        assert gap(asked(stream, session), as_clip(session, frames)) < 1e-4
        one = session.processor.encode(QUESTION, video=frames[:2], video_fps=FPS).media[0].tiles[0]
        assert one[1:] != session.processor.encode(QUESTION, video=frames, video_fps=FPS).media[0].tiles[0][1:]


def test_families_without_clips_are_not_watched(bundle_of):
    with load(bundle_of("llama"), threads=1) as session, pytest.raises(InputError, match="takes no video"):
        stream_of(session)
