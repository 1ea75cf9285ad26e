"""/v1/completions: texts and token ids without a chat template."""

from __future__ import annotations

import pytest

import linmu
from tests.serving.api.servers import NAME


def complete(server, prompt, **fields):
    return server.openai.completions.create(model=NAME, prompt=prompt, **{"max_tokens": 6, **fields})


def test_a_completion_is_a_sessions(text, bundle_of):
    answer = complete(text, "Once upon")
    with linmu.load(bundle_of("llama"), "onnxruntime", threads=1) as session:
        expected = session.generate("Once upon", raw=True, max_new_tokens=6)
        ids = session.processor.encode("Once upon", raw=True).input_ids.tolist()
    assert answer.choices[0].text == expected.text and answer.object == "text_completion"
    assert answer.usage.prompt_tokens == expected.prompt_tokens == len(ids)
    for same in (["Once upon"], ids):
        assert complete(text, same).choices[0].text == expected.text
    stream = complete(text, "Once upon", stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == expected.text
    assert chunks[-1].usage == answer.usage and chunks[-2].choices[0].finish_reason == answer.choices[0].finish_reason


def test_control_tokens_of_a_raw_text_are_tokens(text):
    assert complete(text, "<|im_start|>a<|im_end|>").usage.prompt_tokens == complete(text, "abc").usage.prompt_tokens


@pytest.mark.parametrize("stream", (False, True))
def test_log_probabilities_in_their_older_form(text, stream):
    if stream:
        found = [chunk.choices[0].logprobs for chunk in complete(text, "Once", logprobs=2, stream=True)]
        tokens = [token for item in found for token in item.tokens]
        offsets = [offset for item in found for offset in item.text_offset]
    else:
        item = complete(text, "Once", logprobs=2).choices[0].logprobs
        tokens, offsets = item.tokens, item.text_offset
        assert all(len(top) <= 2 and token in top for token, top in zip(tokens, item.top_logprobs, strict=True))
        assert all(value <= 0 for value in item.token_logprobs)
    assert len(tokens) == 6 and offsets == [sum(map(len, tokens[:i])) for i in range(6)]


def test_defaults_and_limits(text):
    assert text.openai.completions.create(model=NAME, prompt="a").usage.completion_tokens <= 16
    assert complete(text, "a", max_tokens=0).usage.completion_tokens == 0
    assert len(complete(text, "a", n=2, seed=1).choices) == 2


@pytest.mark.parametrize(
    ("name", "values"),
    {
        "prompt": [None, "", [], ["a", "b"], [1, "a"], [-1], [10**9], [True], [[1]], {}],
        "logprobs": [6, True],
        "echo": [True],
        "best_of": [2],
        "suffix": ["x"],
        "messages": [[]],
        "max_tokens": [-1],
    }.items(),
)
def test_what_is_refused(text, name, values):
    for value in values:
        error = text.error({"model": NAME, "prompt": "a", "max_tokens": 2, name: value}, "/v1/completions")
        assert (error["param"] or "").startswith(name), (value, error)
