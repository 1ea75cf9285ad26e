"""Log probabilities, biases, penalties and forms of answers."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

import linmu
from linmu.serving.api.token_texts import TokenTexts
from tests.serving.api.servers import conversation

SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "kind": {"enum": ["cat", "dog"]}},
    "required": ["ok", "kind"],
    "additionalProperties": False,
}


def schema_format(schema, **fields):
    return {"type": "json_schema", "json_schema": {"name": "thing", "schema": schema, **fields}}


@pytest.mark.parametrize("stream", (False, True))
def test_log_probabilities_are_the_models(text, bundle_of, stream):
    asked = {"logprobs": True, "top_logprobs": 3, "max_completion_tokens": 5}
    if stream:
        parts = [part.choices[0] for part in text.chat("hello", stream=True, **asked)]
        entries = [entry for part in parts if part.logprobs for entry in part.logprobs.content]
    else:
        entries = text.chat("hello", **asked).choices[0].logprobs.content
    with linmu.load(bundle_of("llama"), "onnxruntime", threads=1) as session:
        logits = session.prefill(session.prepare("hello"))
        for entry in entries:
            probabilities = np.exp(logits.astype(np.float64) - logits.max())
            probabilities /= probabilities.sum()
            order = np.argsort(-probabilities)
            token = int(order[0])
            assert math.isclose(entry.logprob, math.log(probabilities[token]), abs_tol=1e-4)
            assert len(entry.top_logprobs) == 3 and entry.top_logprobs[0].token == entry.token
            assert [top.logprob for top in entry.top_logprobs] == sorted(
                (top.logprob for top in entry.top_logprobs), reverse=True
            )
            assert bytes(entry.bytes) == TokenTexts(session.processor)._bytes(token)
            logits = session.step(token)
    assert len(entries) == 5


def test_the_bytes_of_tokens_are_the_text(text):
    texts = TokenTexts(text.engine.processor)
    said = "Größe 世界 🙂\n x"
    ids = text.engine.processor.tokenizer.encode(said, add_special_tokens=False).ids
    assert b"".join(bytes(texts.of(token)[1]) for token in ids) == said.encode()
    assert texts.of(10**6) == ("", []) and texts.of(0)[0] == "<pad>"


@pytest.mark.parametrize("stream", (False, True))
def test_answers_follow_a_schema(text, stream):
    asked = {"response_format": schema_format(SCHEMA, strict=True), "max_completion_tokens": 400, "seed": 3}
    if stream:
        said = "".join(part.choices[0].delta.content or "" for part in text.chat("make one", stream=True, **asked))
    else:
        said = text.chat("make one", **asked).choices[0].message.content
    made = json.loads(said)
    assert set(made) == {"ok", "kind"} and type(made["ok"]) is bool and made["kind"] in ("cat", "dog")


def test_each_of_several_answers_follows_it(text):
    made = text.chat("make", response_format=schema_format(SCHEMA), n=3, temperature=1.5, max_completion_tokens=400)
    assert all(json.loads(choice.message.content)["kind"] in ("cat", "dog") for choice in made.choices)


def test_any_object(text):
    choice = text.chat("make one", response_format={"type": "json_object"}, max_completion_tokens=30).choices[0]
    assert choice.message.content.lstrip().startswith("{")
    assert choice.finish_reason == "length" or json.loads(choice.message.content) is not None
    plain = text.chat("make one").choices[0].message.content
    assert text.chat("make one", response_format={"type": "text"}).choices[0].message.content == plain


@pytest.mark.parametrize(
    "schema", ({"type": "nothing"}, {"$ref": "#/none"}, {"type": "string", "pattern": "("}, {"enum": [-(2**63)]})
)
def test_schemas_that_cannot_be_followed(text, schema):
    error = text.error(conversation(response_format=schema_format(schema)))
    assert error["param"] == "response_format.json_schema.schema"


def test_a_bias_forbids_and_forces(text):
    token = text.engine.processor.tokenizer.token_to_id("x")
    assert text.chat("hello", logit_bias={str(token): 100}).choices[0].message.content == "xxxxxx"
    first = text.chat("hello", logprobs=True).choices[0].logprobs.content[0].token
    forbidden = text.engine.processor.tokenizer.encode(first, add_special_tokens=False).ids
    if len(forbidden) == 1:
        answer = text.chat("hello", logprobs=True, logit_bias={str(forbidden[0]): -100})
        assert answer.choices[0].logprobs.content[0].token != first


@pytest.mark.parametrize(
    "fields", ({"frequency_penalty": 2}, {"presence_penalty": 2}, {"extra_body": {"repetition_penalty": 2.0}})
)
def test_penalties_change_an_answer_that_repeats(text, fields):
    token = text.engine.processor.tokenizer.token_to_id("x")
    bias = {"logit_bias": {str(token): 4.0}, "max_completion_tokens": 24}
    assert (
        text.chat("a", **bias).choices[0].message.content != text.chat("a", **bias, **fields).choices[0].message.content
    )


@pytest.mark.parametrize("fields", ({"top_k": 1}, {"min_p": 1.0}, {"top_p": 1e-9}))
def test_chance_that_leaves_one_token_is_greedy(text, fields):
    drawn = text.chat("hello", temperature=2.0, extra_body=fields).choices[0].message.content
    assert drawn == text.chat("hello").choices[0].message.content
