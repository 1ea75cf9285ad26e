"""An answer between logits and text, without a runner: how it ends, what its pieces tell, beside a session's."""

from __future__ import annotations

import time

import numpy as np
import pytest

import linmu
from linmu.errors import InputError
from linmu.runtimes.answer import Clock
from linmu.runtimes.answering import Answering, AnswerSettings
from linmu.runtimes.sampling import Sampling


@pytest.fixture
def session(bundle_of):
    with linmu.load(bundle_of("llama"), threads=1) as session:
        yield session


def answering(session, **settings):
    settings = AnswerSettings(**{"limit": 99, **settings})
    return Answering(session.processor, settings, np.array([5, 6, 7]), Clock(time.perf_counter()), "a notice")


def ids(session, text):
    return session.processor.tokenizer.encode(text, add_special_tokens=False).ids


def push(answer, session, tokens):
    """Pieces for logits whose largest is each of the tokens in turn."""
    return [answer.push(np.eye(session.processor.vocabulary, dtype=np.float32)[token]) for token in tokens]


def test_an_end_token_ends_it(session):
    answer = answering(session)
    tokens = [*ids(session, "é!"), session.processor.eos_token_ids[0]]
    pieces = push(answer, session, tokens)
    assert [piece.text for piece in pieces] == ["", "é", "!", ""]
    assert [piece.finish_reason for piece in pieces] == [None, None, None, "stop"]
    assert [piece.token_id for piece in pieces] == tokens and answer.token == tokens[-1] and answer.cut_text is None
    assert {(piece.prompt_tokens, piece.notice, piece.logprobs) for piece in pieces} == {(3, "a notice", None)}


def test_a_limit_ends_it_and_gives_what_was_held_back(session):
    pieces = push(answering(session, limit=3, stops=("ab!",)), session, ids(session, "xab"))
    assert [piece.text for piece in pieces] == ["x", "", "ab"] and pieces[-1].finish_reason == "length"
    half = push(answering(session, limit=1), session, ids(session, "é")[:1])
    assert half[0].text == "\N{REPLACEMENT CHARACTER}" and half[0].finish_reason == "length"
    empty = answering(session, limit=0).empty()
    assert (empty.text, empty.token_id, empty.finish_reason, empty.prompt_tokens) == ("", None, "length", 3)


def test_a_stop_string_ends_it_even_at_the_limit(session):
    for limit in (4, 99):
        answer = answering(session, limit=limit, stops=("no", "ab!"))
        pieces = push(answer, session, ids(session, "xab!"))
        assert "".join(map(str, pieces)) == "x" == answer.cut_text and pieces[-1].finish_reason == "stop"


def test_pieces_tell_logprobs_where_they_are_asked_for(session):
    pieces = push(answering(session, sampling=Sampling(logprobs=2)), session, [9, 4])
    size = session.processor.vocabulary
    best, other = np.log(np.e / (np.e + size - 1)), np.log(1 / (np.e + size - 1))
    assert [piece.logprobs.token for piece in pieces] == [9, 4]
    for piece, wanted in zip(pieces, (((9, best), (0, other)), ((4, best), (0, other))), strict=True):
        np.testing.assert_allclose(piece.logprobs.top, wanted)
        assert piece.logprobs.logprob == pytest.approx(best)


def test_a_session_is_an_answering_and_a_runner(session):
    sampling = Sampling(temperature=1.5, seed=4, repetition_penalty=1.3, frequency_penalty=0.5, logprobs=3)
    wanted = session.generate("go", max_new_tokens=12, sampling=sampling)
    session.reset()
    turn = session.prepare("go")
    answer = Answering(
        session.processor, AnswerSettings(12, sampling), turn.input_ids, Clock(time.perf_counter())
    )  # fmt: skip
    pieces = [answer.push(session.prefill(turn))]
    while pieces[-1].finish_reason is None:
        pieces.append(answer.push(session.step(answer.token)))
    assert tuple(piece.token_id for piece in pieces) == wanted.token_ids
    assert tuple(piece.logprobs for piece in pieces) == wanted.logprobs and len(wanted.logprobs) == 12
    assert "".join(map(str, pieces)) == wanted.text
    assert pieces[-1].prompt_tokens == wanted.prompt_tokens


def test_logprobs_of_a_session_are_those_of_its_logits(session):
    answer = session.generate("go", max_new_tokens=4, sampling=Sampling(logprobs=1))
    session.reset()
    logits = session.prefill(session.prepare("go"))
    for choice in answer.logprobs:
        exact = logits.astype(np.float64)
        exact -= np.logaddexp.reduce(exact)
        assert choice.logprob == pytest.approx(exact[choice.token], abs=1e-9)
        assert choice.top == ((choice.token, choice.logprob),)  # greedy
        logits = session.step(choice.token)
    assert session.generate("go on", max_new_tokens=4).logprobs == ()


def test_a_bias_of_a_token_that_the_model_lacks_is_refused_before_anything_is_read(session):
    size = session.processor.vocabulary
    with pytest.raises(InputError, match="logit_bias"):
        session.generate("x", sampling=Sampling(logit_bias={size: 1.0}))
    assert session.state.tokens == 0
    assert session.generate("x", sampling=Sampling(logit_bias={size - 1: 100.0}), max_new_tokens=2).token_ids == (
        size - 1,
        size - 1,
    )
