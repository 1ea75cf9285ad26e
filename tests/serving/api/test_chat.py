"""/v1/chat/completions with OpenAI's own client: answers are a session's, whole and in chunks."""

from __future__ import annotations

import pytest

import linmu
from tests.serving.api.servers import NAME, data_url, picture_message, png


@pytest.fixture(scope="module")
def session(bundle_of):
    with linmu.load(bundle_of("smolvlm"), "onnxruntime", threads=1) as session:
        yield session


def alone(session, prompt, images=(), **options):
    session.reset()
    return session.generate(prompt, images, **options)


def test_an_answer_is_a_sessions(vision, session):
    answer = vision.chat("hello there", max_completion_tokens=8)
    expected = alone(session, "hello there", max_new_tokens=8)
    assert answer.choices[0].message.content == expected.text and answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == expected.finish_reason and answer.choices[0].index == 0
    assert answer.object == "chat.completion" and answer.model == NAME and answer.id.startswith("chatcmpl-")
    assert answer.usage.prompt_tokens == expected.prompt_tokens
    assert answer.usage.completion_tokens == len(expected.token_ids)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details.cached_tokens == 0


@pytest.mark.parametrize("with_usage", (False, True))
def test_a_stream_is_the_same_answer(vision, with_usage):
    whole = vision.chat("tell me", max_completion_tokens=8)
    options = {"stream_options": {"include_usage": True}} if with_usage else {}
    chunks = list(vision.chat("tell me", max_completion_tokens=8, stream=True, **options))
    parts = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert "".join(part.delta.content or "" for part in parts) == whole.choices[0].message.content
    assert parts[0].delta.role == "assistant" and parts[-1].finish_reason == whole.choices[0].finish_reason
    assert all(part.finish_reason is None for part in parts[:-1])
    assert len({chunk.id for chunk in chunks}) == 1 and chunks[0].object == "chat.completion.chunk"
    if with_usage:
        assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
        assert all(chunk.usage is None for chunk in chunks[:-1])
    else:
        assert all(chunk.usage is None for chunk in chunks)


def test_pictures_are_seen(vision, session):
    first, second = png(0), png(1)
    answers = [
        vision.chat(messages=picture_message(data_url(data)), max_completion_tokens=8) for data in (first, second)
    ]
    for data, answer in zip((first, second), answers, strict=True):
        messages = [{"role": "user", "content": [{"type": "text", "text": "what is this?"}, {"type": "image"}]}]
        expected = alone(session, messages, [data], max_new_tokens=8)
        assert answer.choices[0].message.content == expected.text
        assert answer.usage.prompt_tokens == expected.prompt_tokens


def test_a_conversation_with_a_system_prompt(vision, session):
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "hi"},
        {"role": "user", "content": [{"type": "text", "text": "who"}, {"type": "text", "text": "are you?"}]},
    ]
    answer = vision.chat(messages=messages, max_completion_tokens=8)
    expected = alone(session, [{"role": "system", "content": "Be brief."}, *messages[1:]], max_new_tokens=8)
    assert answer.choices[0].message.content == expected.text


def test_an_answer_can_be_sent_back_as_the_client_has_it(vision):
    answer = vision.chat("hello")
    messages = [{"role": "user", "content": "hello"}, answer.choices[0].message.model_dump()]
    assert vision.chat(messages=[*messages, {"role": "user", "content": "and?"}]).choices[0].message.content


def test_stops_end_an_answer_and_are_not_in_it(text):
    whole = text.chat("go on", max_completion_tokens=12).choices[0].message.content
    stop = whole[3:5]
    for given in (stop, ["never in there", stop]):
        choice = text.chat("go on", max_completion_tokens=12, stop=given).choices[0]
        assert choice.message.content == whole[: whole.index(stop)] and choice.finish_reason == "stop"


def test_several_answers_with_a_seed_can_be_had_again(text):
    def ask(seed):
        made = text.chat("go on", max_completion_tokens=8, n=3, temperature=1.5, seed=seed)
        assert [choice.index for choice in made.choices] == [0, 1, 2]
        return [choice.message.content for choice in made.choices], made.usage.completion_tokens

    first, tokens = ask(7)
    assert ask(7)[0] == first and len(set(first)) > 1 and tokens > 8
    stream = text.chat("go on", max_completion_tokens=8, n=3, temperature=1.5, seed=7, stream=True)
    texts = ["", "", ""]
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == first


def test_without_a_temperature_chance_is_only_where_it_is_asked_for(text):
    greedy = {text.chat("go", max_completion_tokens=8).choices[0].message.content for _ in range(2)}
    assert len(greedy) == 1
    drawn = [text.chat("go", max_completion_tokens=8, seed=seed).choices[0].message.content for seed in range(4)]
    assert len({*drawn}) > 1


def test_an_ended_answer_ends_without_its_end_token(bundle_of, text):
    """Every answer is either cut or ended; a bias towards the end token ends it at once."""
    end = text.engine.processor.eos_token_ids[0]
    choice = text.chat("hello", logit_bias={str(end): 100}).choices[0]
    assert choice.message.content == "" and choice.finish_reason == "stop"
