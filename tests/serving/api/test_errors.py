"""What is refused: by name, in OpenAI's form, with the state of the server as before."""

from __future__ import annotations

import json

import openai
import pytest

from tests.serving.api.servers import NAME, conversation, data_url, picture_message, png

PART = {"type": "image_url", "image_url": {"url": data_url(png())}}
# fields of OpenAI's API that linmu does not follow, and some that nobody has
UNKNOWN = {
    "audio": {"voice": "x"},
    "functions": [],
    "function_call": "auto",
    "metadata": {},
    "prediction": {},
    "reasoning_effort": "low",
    "parallel_tool_calls": True,
    "web_search_options": {},
    "best_of": 2,
    "guided_json": {},
    "n_predict": 5,
    "tempreature": 1,
}
WRONG = {
    "temperature": [-0.1, 2.1, "1", True, [1]],
    "top_p": [0, 1.1, "x"],
    "top_k": [-2, 1.5, "3"],
    "min_p": [-0.1, 1.1],
    "seed": [1.5, "a", 2**63],
    "presence_penalty": [-2.1, 2.1],
    "frequency_penalty": [-2.1, "0"],
    "repetition_penalty": [0, 2.1],
    "logit_bias": [{"x": 1}, {"-1": 1}, {"1": 101}, {"99999": 1}, [1]],
    "max_completion_tokens": [0, -1, 1.5, "9", 10**9],
    "max_tokens": [0, "9"],
    "n": [0, 5, 1.5],
    "stop": ["", [""], 3, ["x"] * 17],
    "stream": ["yes", 1],
    "stream_options": [{"include_usage": 1}, {"x": 1}, {"include_usage": True}],
    "logprobs": [1, "x"],
    "top_logprobs": [3, 21, -1],
    "store": [True],
    "modalities": [["audio"]],
    "service_tier": ["flex"],
    "response_format": [{"type": "xml"}, "json", {"type": "json_schema"}],
    "tool_choice": ["required", {"type": "function", "function": {"name": "f"}}, "auto"],
    "tools": [[], [{"type": "web"}], [{"type": "function", "function": {"name": "f"}}]],
    "user": [3],
    "messages": [[], "hello", None, [{"role": "user"}], [{"role": "robot", "content": "x"}]],
    "model": ["other", 3],
}
MESSAGES = {
    "messages[0].content": {"role": "user", "content": 3},
    "messages[0].name": {"role": "user", "content": "x", "name": "ann"},
    "messages[0].content[0].type": {"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]},
    "messages[0].content[0].text": {"role": "user", "content": [{"type": "text"}]},
    "messages[0].content[1].image_url.detail": {
        "role": "user",
        "content": [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": "x", "detail": "4k"}}],
    },
    "messages[0].content[0].image_url": {"role": "user", "content": [{"type": "image_url", "image_url": "data:"}]},
    "messages[0].content[0].video_url.fps": {
        "role": "user",
        "content": [{"type": "video_url", "video_url": {"url": "x", "fps": 0}}],
    },
    "messages[0].tool_calls": {
        "role": "assistant",
        "content": "x",
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
    },
    "messages[0].role": {"role": "tool", "content": "x", "tool_call_id": "1"},
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_fields_that_are_not_followed_are_refused_by_name(text, name):
    error = text.error(conversation(**{name: UNKNOWN[name]}))
    assert error["param"] == name and name in error["message"] and error["code"] == "unknown_parameter"
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("name", WRONG)
def test_wrong_values_are_refused_by_name(text, name):
    for value in WRONG[name]:
        document = {**conversation(), name: value}
        if name.startswith("max"):
            document = {key: item for key, item in document.items() if key == name or key != "max_tokens"}
        status = 404 if value == "other" else 400
        error = text.error(document, status=status)
        assert (error["param"] or "").startswith(name), (value, error)


@pytest.mark.parametrize("param", MESSAGES)
def test_wrong_parts_of_messages_are_named(vision, param):
    error = vision.error({**conversation(), "messages": [MESSAGES[param]]})
    assert error["param"] == param, error


def test_null_is_as_if_it_were_not_there(text):
    fields = dict.fromkeys(("temperature", "stop", "n", "tools", "logit_bias", "response_format", "stream", "user"))
    assert text.post(conversation(**fields)).status_code == 200


def test_what_clients_say_that_is_true_here_is_taken(text):
    fields = {"store": False, "modalities": ["text"], "service_tier": "auto", "user": "ann", "tool_choice": "none"}
    assert text.post(conversation(**fields)).status_code == 200


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'"x"', b"\xff\xfe", b'{"a": NaN}', b'{"a": 1e999}', b'{"a": "\\ud800"}', b'{"a":1,"a":2}']
    + [b'{"a":' * 100_000, b'{"a":' + b"[" * 100 + b"]" * 100 + b"}", b'{"a": ' + b"9" * 5000 + b"}"],
)
def test_bodies_that_are_no_json(text, body):
    response = text.http.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400 and response.json()["error"]["code"] == "invalid_json", response.text


@pytest.mark.parametrize("headers", ({"content-type": "text/plain"}, {}, {"content-encoding": "gzip"}))
def test_contents_of_other_types(text, headers):
    kind = {"content-type": "application/json", **headers} if headers else {}
    response = text.http.post("/v1/completions", content=json.dumps(conversation()), headers=kind)
    assert response.status_code == 415 and response.json()["error"]["code"] == "unsupported_media_type"


def test_paths_and_methods(text):
    for method, path, status in (
        ("GET", "/nope", 404),
        ("GET", "/v1/../../etc/passwd", 404),
        ("GET", "/v1/models/other", 404),
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("GET", "/docs", 404),
        ("GET", "/health/", 404),
        ("GET", "/openapi.json", 404),
    ):
        response = text.http.request(method, path)
        assert response.status_code == status and response.json()["error"]["message"], path


def test_openais_client_raises_its_own_errors(text):
    with pytest.raises(openai.BadRequestError) as caught:
        text.chat("x", extra_body={"surplus": 1})
    assert caught.value.param == "surplus" and caught.value.code == "unknown_parameter"
    with pytest.raises(openai.NotFoundError):
        text.openai.chat.completions.create(model="other", messages=[{"role": "user", "content": "x"}])


def test_pictures_for_a_model_that_takes_none(text):
    error = text.error({**conversation(), "messages": picture_message(data_url(png()))})
    assert error["param"] == "messages"


def test_texts_that_are_no_text(text):
    assert text.error(conversation("\ufdd0"))["param"] == "messages"
    assert text.error(conversation(""))["param"] == "messages"


def test_models(text):
    listed = text.openai.models.list().data
    assert [model.id for model in listed] == [NAME] and text.openai.models.retrieve(NAME).id == NAME
    assert listed[0].max_model_len == text.http.get("/health").json()["context_tokens"]
