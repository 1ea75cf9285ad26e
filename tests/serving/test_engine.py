"""The engine on real tiny bundles: answers as those of a session alone, whoever else is being answered."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

import linmu
from linmu.errors import InputError
from linmu.runtimes.sampling import Sampling
from linmu.serving.engine import Engine
from linmu.serving.request import EngineClosed, Limits, PromptTooLong, QueueFull, Request
from tests.runtimes.sessions import media

WORDS = ("alpha", "what is this", "tell me more about it, please", "no", "a b c d e f g h i j k l m n o p" * 3)


class Endless(Sampling):
    """Never chooses the end token."""

    def choose(self, logits, generator):
        return 3 + int(logits[3:].argmax())


ENDLESS = Request("one", max_new_tokens=10**9, sampling=Endless())


def alone(path, request: Request) -> str:
    with linmu.load(path, "onnxruntime", threads=1) as session:
        return session.generate(
            request.prompt, request.images, max_new_tokens=request.max_new_tokens, sampling=request.sampling
        ).text


def text(ticket, index: int = 0) -> str:
    return "".join(event.piece.text for event in ticket if event.index == index)


@pytest.mark.parametrize("family", ("llama", "smolvlm"))
def test_answers_are_those_of_a_session_alone(family, bundle_of):
    path = bundle_of(family)
    requests = [Request(words, max_new_tokens=5 + 3 * i, **media(family)) for i, words in enumerate(WORDS)]
    with Engine(path, "onnxruntime", 1, Limits(max_sessions=3, piece_tokens=16)) as engine:
        tickets = [engine.submit(request) for request in requests]
        answers = [text(ticket) for ticket in tickets]
        counters = engine.counters()
    assert answers == [alone(path, request) for request in requests]
    assert counters.requests == {"finished": len(WORDS)} and counters.queued == 0
    assert sum(counters.step_rows.counts[1:]) > 0  # steps of several rows


def test_the_last_event_tells_usage(bundle_of):
    with Engine(bundle_of("llama"), "onnxruntime", 1) as engine:
        events = list(engine.submit(Request("hello", max_new_tokens=4)))
        prompt = len(engine.processor.encode("hello").input_ids)
        assert [event.usage for event in events[:-1]] == [None] * (len(events) - 1)
        assert events[-1].piece.finish_reason and events[-1].usage is not None
        assert (events[-1].usage.prompt_tokens, events[-1].usage.completion_tokens) == (prompt, len(events))
        (only,) = engine.submit(Request("hello", max_new_tokens=0))
        assert only.piece.finish_reason == "length" and only.usage.completion_tokens == 0
        ready = engine.submit(Request(engine.processor.encode("hello"), max_new_tokens=4))
        assert [event.piece.token_id for event in ready] == [event.piece.token_id for event in events]


def test_several_answers_have_seeds_of_their_own(bundle_of):
    sampling = Sampling(temperature=1.0, seed=5)
    request = Request("hello", sampling=sampling, max_new_tokens=12, n=3)
    with Engine(bundle_of("llama"), "onnxruntime", 1) as engine:
        events = list(engine.submit(request))
        one = list(engine.submit(Request("hello", sampling=Sampling(temperature=1.0, seed=6), max_new_tokens=12)))
    answers = [[event.piece.token_id for event in events if event.index == index] for index in range(3)]
    assert len({tuple(answer) for answer in answers}) == 3
    assert answers[1] == [event.piece.token_id for event in one]
    assert [event.usage is None for event in events] == [True] * (len(events) - 1) + [False]


def test_a_cancelled_request_gives_its_place_to_the_next(bundle_of):
    with Engine(bundle_of("llama"), "onnxruntime", 1, Limits(max_sessions=1)) as engine:
        long = engine.submit(ENDLESS)
        next(iter(long))
        waiting = engine.submit(Request("two", max_new_tokens=3))
        gone = engine.submit(Request("three", max_new_tokens=3))
        gone.cancel()
        long.cancel()
        assert list(waiting)[-1].piece.finish_reason and not list(gone) and not list(long)
        assert engine.counters().requests == {"cancelled": 2, "finished": 1}


def test_a_full_queue_refuses(bundle_of):
    limits = Limits(max_sessions=1, max_queued=1)
    with Engine(bundle_of("llama"), "onnxruntime", 1, limits) as engine:
        first = engine.submit(ENDLESS)
        next(iter(first))
        engine.submit(ENDLESS)
        with pytest.raises(QueueFull) as caught:
            engine.submit(ENDLESS)
        assert caught.value.retry_after_s >= 1


def test_what_is_wrong_with_one_request_is_said_at_once(bundle_of):
    limits = Limits(max_sessions=2, max_prompt_tokens=40, max_new_tokens=50)
    with Engine(bundle_of("llama"), "onnxruntime", 1, limits) as engine:
        for wrong in ({"prompt": ""}, {"n": 3}, {"max_new_tokens": 51}, {"stop": [""]}, {"images": [b"no picture"]}):
            with pytest.raises(InputError):
                engine.submit(Request(**{"prompt": "hello", **wrong}))
        with pytest.raises(PromptTooLong):
            engine.submit(Request("x" * 50))
        assert text(engine.submit(Request("hello", max_new_tokens=50))) is not None


def test_a_request_that_fails_ends_alone(bundle_of):
    with Engine(bundle_of("llama"), "onnxruntime", 1) as engine:
        good = Request("hello", max_new_tokens=60, sampling=Sampling(temperature=1.0, seed=1))
        expected = text(engine.submit(good))
        beside = engine.submit(good)
        inputs = engine.processor.encode("hello")
        inputs.input_ids[1] = 10**6
        with pytest.raises(InputError, match="vocabulary"):
            list(engine.submit(Request(inputs)))
        assert text(beside) == expected


def test_an_event_loop_reads_tickets(bundle_of):
    async def read(engine, words):
        return "".join([event.piece.text async for event in engine.submit(Request(words, max_new_tokens=6))])

    async def read_all(engine):
        return await asyncio.gather(*(read(engine, words) for words in WORDS))

    with Engine(bundle_of("llama"), "onnxruntime", 1) as engine:
        assert asyncio.run(read_all(engine)) == [
            text(engine.submit(Request(words, max_new_tokens=6))) for words in WORDS
        ]


def test_closing_finishes_or_ends_what_was_taken(bundle_of):
    path = bundle_of("llama")
    engine = Engine(path, "onnxruntime", 1, Limits(max_sessions=1))
    tickets = [engine.submit(Request(words, max_new_tokens=5)) for words in WORDS]
    engine.close()
    assert all(list(ticket)[-1].piece.finish_reason for ticket in tickets)
    with pytest.raises(EngineClosed):
        engine.submit(Request("hello"))
    engine = Engine(path, "onnxruntime", 1, Limits(max_sessions=1))
    tickets = [engine.submit(ENDLESS) for _ in WORDS]
    engine.close(wait=False)
    for ticket in tickets:
        with pytest.raises(EngineClosed):
            list(ticket)


def test_functions_run_beside_answers(bundle_of):
    with Engine(bundle_of("llama"), "onnxruntime", 1) as engine:
        endless = engine.submit(ENDLESS)
        assert engine.call(lambda runner: runner.embed(np.array([1])).shape).result(30)[0] == 1
        with pytest.raises(ZeroDivisionError):
            engine.call(lambda runner: 1 / 0).result(30)
        assert not endless.done
    with pytest.raises(InputError, match="backend"):
        Engine(bundle_of("llama"), "nonsense")
