"""Answers held to a form: random schemas under random logits and in real sessions, tokenizers, what is refused."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

import linmu
from linmu.demo import student_folder
from linmu.errors import InputError
from linmu.processing import Processor
from linmu.processing.settings import ProcessorSettings, TokenSettings
from linmu.processing.tokens import load_tokenizer
from linmu.runtimes.answer import Clock
from linmu.runtimes.answering import Answering, AnswerSettings
from linmu.runtimes.sampling import Sampling
from linmu.serving.schema import Grammars
from linmu.serving.schema_limits import MOST_CHARACTERS
from tests.exports import export_bundle
from tests.runtimes.conftest import bundle_of  # noqa: F401
from tests.serving.schemas import is_valid, random_schema, read
from tests.tiny import tiny_tokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:-+[]{}\"'\\_!?"


def byte_level() -> Tokenizer:
    return tiny_tokenizer("smolvlm").backend_tokenizer


def merged() -> Tokenizer:
    """The demo's: byte-level, with merges."""
    return load_tokenizer(student_folder() / "tokenizer.json")


def sentencepiece() -> Tokenizer:
    """As in Llama 2: spaces are "▁", what is not in the vocabulary is bytes."""
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        *LETTERS,
        "▁{",
        '":',
        '▁"',
        "true",
    ]
    core = Tokenizer(
        models.BPE({piece: i for i, piece in enumerate(pieces)}, [], byte_fallback=True, unk_token="<unk>")
    )
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    core.add_special_tokens(["<unk>", "<s>", "</s>"])
    return core


def metaspace() -> Tokenizer:
    """As newer conversions of SentencePiece models are written."""
    core = sentencepiece()
    core.normalizer = None
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    core.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first", split=False)])
    return core


TOKENIZERS = {"byte-level": byte_level, "merges": merged, "sentencepiece": sentencepiece, "metaspace": metaspace}


def processor(tokenizer: Tokenizer, ends=(2,), padding: int = 13) -> Processor:
    tokens = TokenSettings(eos_token_ids=ends, template_variables={}, chat_adds_special_tokens=False)
    vocabulary = tokenizer.get_vocab_size() + padding
    return Processor(ProcessorSettings(family="llama", tokens=tokens), tokenizer, None, vocabulary)


def answer(processor: Processor, constraint, seed: int, limit: int = 400, best: str = ""):
    """Text, ids and finish reason of an answer to random logits; tokens of the characters `best` are likelier."""
    random = np.random.default_rng(seed)
    settings = AnswerSettings(limit, Sampling(temperature=1.0, seed=seed), (), constraint)
    answering = Answering(processor, settings, np.array([1]), Clock(time.perf_counter()))
    liked = [i for text in best if (i := processor.tokenizer.token_to_id(text)) is not None]
    pieces = []
    while not pieces or pieces[-1].finish_reason is None:
        logits = random.normal(0, 3, processor.vocabulary).astype(np.float32)
        logits[liked] += 6
        logits[-13:] += 8  # what no token stands for
        pieces.append(answering.push(logits))
    return "".join(map(str, pieces)), [piece.token_id for piece in pieces], pieces[-1].finish_reason


@pytest.fixture(scope="module")
def grammars():
    return {name: Grammars(processor(make())) for name, make in TOKENIZERS.items()}


# --- schemas


@pytest.mark.parametrize("name", TOKENIZERS)
def test_answers_to_random_logits_are_instances_of_random_schemas(name, grammars):
    """Fifty schemas a tokenizer; only the limit may cut an answer short, and it seldom does."""
    grammar, whole = grammars[name], 0
    for seed in range(50):
        schema = random_schema(Random(f"{name} {seed}"))
        text, ids, reason = answer(grammar._processor, grammar.json_schema(schema), seed)
        if reason == "stop":
            whole += 1
            assert is_valid(read(text), schema), (schema, text)
        else:
            assert len(ids) == 400
    assert whole >= 43


def test_the_checker_of_these_tests_tells_instances_from_others():
    schema = {"type": "object", "properties": {"a": {"type": "integer", "maximum": 3}}, "required": ["a"]}
    assert is_valid(read('{"a": 1}'), schema) and is_valid(read('{"a": 1.0, "b": 0}'), schema)
    for text in ('{"a": 4}', '{"a": 1.5}', "{}", "[]", '{"a": true}'):
        assert not is_valid(read(text), schema)
    wrong = 0
    for seed in range(50):
        schema = random_schema(Random(seed))
        wrong += not is_valid(read('{"zz": [1, "never"]}'), schema)
    assert wrong == 50


@pytest.mark.parametrize("name", TOKENIZERS)
def test_any_json_object(name, grammars):
    found = []
    for seed in range(5):
        text, _, reason = answer(grammars[name]._processor, grammars[name].json_object(), seed, best='"}]')
        assert text.lstrip()[0] == "{"
        found += [json.loads(text)] if reason == "stop" else []
    assert len(found) >= 3 and all(isinstance(value, dict) for value in found)


def test_whitespace_has_an_end(grammars):
    """A model that likes nothing better than spaces still comes to its end."""
    schema = {
        "type": "object",
        "properties": {"a": {"type": "boolean"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    matched = grammars["byte-level"]
    text, _, reason = answer(matched._processor, matched.json_schema(schema), 0, best="ĠĊ")
    assert reason == "stop" and json.loads(text)["a"] in (True, False) and len(text) < 120


@pytest.mark.parametrize("family", ("demo", "llama"))
def test_sessions_answer_in_the_form_asked_for(family, bundle_of, tmp_path):  # noqa: F811
    """Real models, random weights and the demo's; greedy and drawn; the conversation goes on behind it."""
    folder = bundle_of("llama") if family == "llama" else tmp_path / "bundle"
    if family == "demo":
        export_bundle(student_folder(), folder)
    with linmu.load(folder, threads=1) as session:
        grammars, whole = Grammars(session.processor), 0
        for seed in range(16):
            schema = random_schema(Random(f"session {seed}"), depth=1)
            sampling = Sampling(temperature=1.0, seed=seed) if seed % 2 else Sampling()
            session.reset()
            found = session.generate(
                "Say something.", max_new_tokens=150, sampling=sampling, constraint=grammars.json_schema(schema)
            )
            if found.finish_reason == "stop":
                whole += 1
                assert is_valid(read(found.text), schema), (schema, found.text)
        assert whole >= 4
        session.reset()
        first = session.generate("Yes?", constraint=grammars.choice(["yes", "no"]), max_new_tokens=20)
        assert first.text in ("yes", "no") and first.finish_reason == "stop"
        session.generate("And now?", max_new_tokens=2)
        assert session.messages[1]["content"] == first.text


# --- other forms


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_regular_expression_matches_the_whole_answer(name, grammars):
    for seed, pattern in enumerate((r"\d{3}-[a-f]+é?", r"(ja|nein) 世界", r"[^a-z\n]{4}", r"x? ?y{2,3}")):
        text, _, reason = answer(grammars[name]._processor, grammars[name].regex(pattern), seed)
        assert reason == "stop" and re.fullmatch(pattern, text), (pattern, text)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_choice_is_one_of_its_texts_whatever_they_hold(name, grammars):
    texts = ["a.c", "a", "(b|c)*", "\\d{2}", "é 世界\n😀", "ab-c#"]
    matched = grammars[name]
    found = {answer(matched._processor, matched.choice(texts), seed)[0] for seed in range(40)}
    assert found <= set(texts) and len(found) >= 4


# --- tokens


@pytest.mark.parametrize("name", TOKENIZERS)
def test_end_tokens_come_only_where_the_text_is_whole(name, grammars):
    matched = grammars[name].json_schema({"type": "integer"})
    tokenizer, zeros = grammars[name]._processor.tokenizer, np.zeros(grammars[name].vocabulary, np.float32)
    assert matched.allowed(zeros)[2] == -np.inf
    for digit in "-12":
        matched.accept(tokenizer.token_to_id(digit))
        assert (matched.allowed(zeros)[2] == 0) == (digit != "-") and not matched.complete
    matched.accept(2)
    assert matched.complete
    with pytest.raises(InputError, match="may not come here|cannot be followed"):
        grammars[name].json_object().accept(tokenizer.token_to_id("1"))


def test_no_control_token_or_padding_comes_even_where_any_text_may(grammars):
    core = byte_level()
    core.add_special_tokens([AddedToken("<picture>", special=True)])
    made = Grammars(processor(core))
    mask = made.regex("(?s).*").allowed(np.zeros(made.vocabulary, np.float32)) == 0
    names = {core.id_to_token(int(i)) for i in np.flatnonzero(mask)}
    control = set(made._processor.control.ids) - {core.id_to_token(2)}
    assert "<picture>" in control and not names & control
    assert {"a", "Ġ", "Ċ", "0"} <= names
    assert core.id_to_token(2) in names and None not in names


def test_a_vocabulary_smaller_than_the_tokenizers_and_several_or_no_end_tokens():
    core = byte_level()
    small = replace(processor(core), vocabulary=core.get_vocab_size() - 3)
    assert Grammars(small).json_object().allowed(np.zeros(small.vocabulary, np.float32)).shape == (small.vocabulary,)
    ends = [2, core.token_to_id("<|im_end|>")]
    made = Grammars(processor(core, ends=tuple(ends)))
    matched = made.regex("a*")
    assert (matched.allowed(np.zeros(made.vocabulary, np.float32))[ends] == 0).all()
    matched.accept(ends[1])
    assert matched.complete
    text, ids, reason = answer(processor(core, ends=()), Grammars(processor(core, ends=())).regex("ab"), 0)
    assert (text, len(ids), reason) == ("ab", 2, "stop")


def test_two_answers_do_not_disturb_each_other_and_logits_stay_as_they_are(grammars):
    made = grammars["byte-level"]
    one, other = made.regex("ab"), made.regex("ab")
    one.accept(made._processor.tokenizer.token_to_id("a"))
    logits = np.arange(made.vocabulary, dtype=np.float32)
    for constraint, letter in ((one, "b"), (other, "a")):
        masked = constraint.allowed(logits)
        assert masked.dtype == np.float32 and logits[0] == 0 and np.isfinite(logits).all()
        assert np.flatnonzero(masked > -np.inf).tolist() == [made._processor.tokenizer.token_to_id(letter)]


# --- what is refused

CIRCLE: dict = {}
CIRCLE["items"] = CIRCLE
BAD_SCHEMAS = {
    "no schema": [1],
    "a text": "x",
    "an unknown type": {"type": "foo"},
    "a keyword that cannot be held to": {"not": {"type": "string"}},
    "an unknown format": {"type": "string", "format": "blah"},
    "a bad pattern": {"type": "string", "pattern": "("},
    "look-ahead": {"type": "string", "pattern": "(?=a)b"},
    "nothing": False,
    "a contradiction": {"type": "string", "minLength": 5, "maxLength": 2},
    "a reference to nowhere": {"$ref": "#/$defs/x"},
    "a reference to the network": {"$ref": "http://localhost/x"},
    "a reference to a file": {"$ref": "file:///etc/passwd"},
    "an endless reference": {"$ref": "#"},
    "not a number": {"minimum": float("nan")},
    "no JSON": {"const": object()},
    "half a character": {"const": "\ud800"},
    "settings of the library": {"x-guidance": {"lenient": True}, "type": "object"},
    "too large": {"enum": ["x" * MOST_CHARACTERS]},
    "too many properties": {"items": {"type": "object", "properties": {f"p{i}": {} for i in range(501)}}},
    "a circle": CIRCLE,
    "a bound that llguidance does not keep": {"type": "number", "exclusiveMinimum": 0, "maximum": 0.5},
    "the same from above": {"minimum": 1.5, "exclusiveMaximum": 2},
    "the same from two places": {"type": "number", "exclusiveMinimum": 0, "allOf": [{"maximum": 0.5}]},
    "too deep": json.loads('{"items":' * 400 + "{}" + "}" * 400),
}


def deep(levels: int) -> dict:
    schema: dict = {}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize("name", BAD_SCHEMAS)
def test_a_bad_schema_is_one_line(name, grammars):
    with pytest.raises(InputError, match="the JSON schema") as caught:
        grammars["byte-level"].json_schema(BAD_SCHEMAS[name])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize("levels", (1_000, 100_000))
def test_a_schema_too_deep_for_python_is_one_line(levels, grammars):
    schema = deep(levels)
    with pytest.raises(InputError, match="the JSON schema"):
        grammars["byte-level"].json_schema(schema)
    while schema:  # taken apart by hand: Python's own way is recursive
        schema = schema.pop("items")


@pytest.mark.parametrize("pattern", ("(", "(?=a)b", "(" * 5000, "a" * MOST_CHARACTERS + "b", 5, "\ud800"))
def test_a_bad_pattern_is_one_line(pattern, grammars):
    with pytest.raises(InputError, match="the regular expression") as caught:
        grammars["byte-level"].regex(pattern)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize("texts", ([], "yes", [""], [1], None))
def test_a_bad_choice_is_refused(texts, grammars):
    with pytest.raises(InputError, match="the choice"):
        grammars["byte-level"].choice(texts)
