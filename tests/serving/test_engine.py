"""The engine on real tiny bundles: answers as those of a session alone, whoever else is being answered."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest

import linmu
from linmu.errors import BundleError, InputError
from linmu.runtimes.sampling import Sampling
from linmu.serving.engine import Engine
from linmu.serving.request import EngineClosed, Limits, PromptTooLong, QueueFull, Request
from linmu.serving.schema import Grammars
from tests.runtimes.sessions import media

WORDS = ("alpha", "what is this", "tell me more about it, please", "no", "a b c d e f g h i j k l m n o p" * 3)


NO_END = Sampling(logit_bias={2: -100, 4: -100})
ENDLESS = Request("one", max_new_tokens=10**9, sampling=NO_END)


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


@pytest.fixture
def three(bundle_of):
    """An engine, three questions, and what each is answered alone."""
    sampling = Sampling(temperature=1.0, seed=7, logit_bias=NO_END.logit_bias)
    requests = [Request(words, max_new_tokens=300, sampling=sampling) for words in WORDS[:3]]
    with Engine(bundle_of("llama"), "onnxruntime", 1) as engine:
        yield engine, requests, [text(engine.submit(request)) for request in requests]


def outcome(ticket) -> str:
    try:
        return text(ticket)
    except BundleError as error:
        return error.what


def fail(engine, monkeypatch, method: str, call: int) -> None:
    """Let call number `call` from now on of a method of the engine's runner raise."""
    runner = engine.call(lambda runner: runner).result()
    real, calls = getattr(runner, method), iter(range(10**6))

    def wrapped(*arguments):
        if next(calls) == call:
            raise BundleError("broken")
        return real(*arguments)

    monkeypatch.setattr(runner, method, wrapped)


def test_a_step_that_fails_is_tried_for_each_answer_alone(three, monkeypatch):
    engine, requests, expected = three
    begun = [iter(engine.submit(request)) for request in requests]
    first = [next(ticket).piece.text for ticket in begun]
    fail(engine, monkeypatch, "run_bound", 0)
    rest = ["".join(event.piece.text for event in ticket) for ticket in begun]
    assert [a + b for a, b in zip(first, rest, strict=True)] == expected
    assert engine.counters().requests["failed"] == 0


def test_an_answer_whose_step_fails_ends_alone(three, monkeypatch):
    engine, requests, expected = three
    begun = [iter(engine.submit(request)) for request in requests]
    first = [next(ticket).piece.text for ticket in begun]
    fail(engine, monkeypatch, "step", 0)  # what follows on a step of all that failed
    fail(engine, monkeypatch, "run_bound", 0)
    ends = [outcome(ticket) for ticket in begun]
    assert ends.count("broken") == 1
    for begin, end, whole in zip(first, ends, expected, strict=True):
        assert end == "broken" or begin + end == whole
    assert engine.counters().requests["failed"] == 1


def test_logits_that_are_not_finite_end_one_request(three, monkeypatch):
    engine, requests, expected = three
    runner = engine.call(lambda runner: runner).result()
    real = runner.prefill

    def wrapped(piece, state):
        logits = real(piece, state)
        if piece.inputs_embeds.shape[1] == poisoned:
            for array in state.current.values():
                array.fill(np.nan)
        return logits

    monkeypatch.setattr(runner, "prefill", wrapped)
    poisoned = len(engine.processor.encode(WORDS[1]).input_ids)
    tickets = [engine.submit(request) for request in requests]
    assert text(tickets[0]) == expected[0]
    with pytest.raises(InputError, match="not finite"):
        list(tickets[1])
    assert text(tickets[2]) == expected[2]


def test_answers_are_held_to_a_form_of_their_own(bundle_of):
    with Engine(bundle_of("llama"), "onnxruntime", 1) as engine:
        grammars = Grammars(engine.processor)
        request = Request(
            "hello",
            n=2,
            max_new_tokens=200,
            sampling=Sampling(temperature=1.0, seed=1, logprobs=2),
            constraint=lambda: grammars.json_schema({"enum": ["yes", "no", "perhaps"]}),
        )
        events = list(engine.submit(request))
    for index in range(2):
        pieces = [event.piece for event in events if event.index == index]
        assert json.loads("".join(piece.text for piece in pieces)) in ("yes", "no", "perhaps")
        assert all(len(piece.logprobs.top) == 2 for piece in pieces)
