from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from linmu.errors import InputError
from linmu.processing import Processor
from linmu.processing.settings import ProcessorSettings, TokenSettings
from linmu.processing.tokens import StreamDecoder, byte_tokens, load_tokenizer, rust_calls
from tests.tiny import tiny_tokenizer

CORE = tiny_tokenizer("llama").backend_tokenizer


def decode(ids):
    return CORE.decode(list(ids), skip_special_tokens=True)


def stream(ids, how=decode):
    decoder = StreamDecoder(how)
    return [decoder.push(i) for i in ids] + [decoder.flush()]


@given(st.text())
def test_pieces_join_to_the_text_and_no_piece_is_half_a_character(text):
    text = text.replace("\N{REPLACEMENT CHARACTER}", "")
    pieces = stream(CORE.encode(text).ids)
    assert "".join(pieces) == decode(CORE.encode(text).ids)
    assert all("\N{REPLACEMENT CHARACTER}" not in piece for piece in pieces)


@given(st.lists(st.integers(0, CORE.get_vocab_size() - 1), max_size=40))
def test_any_ids_even_invalid_bytes_join_to_the_text(ids):
    assert "".join(stream(ids)) == decode(ids)


def test_a_character_appears_with_its_last_byte():
    ids = CORE.encode("a🙂b").ids
    assert stream(ids) == ["a", "", "", "", "🙂", "b", ""]
    assert stream(ids[:3])[-1] == "\N{REPLACEMENT CHARACTER}"


def test_spaces_of_sentencepiece_and_byte_fallback():
    words = ["<unk>", "▁Hello", "▁world", ".", *(f"<0x{byte:02X}>" for byte in "é€".encode())]
    core = Tokenizer(models.BPE(vocab={w: i for i, w in enumerate(words)}, merges=[], byte_fallback=True))
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    core.add_special_tokens(["<s>"])
    ids = [len(words), 1, 2, 3, 1, 4, 5, 2, 6, 7, 8, 3]
    assert "".join(stream(ids, core.decode)) == core.decode(ids) == "Hello world. Helloé world€."


BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_fallback() -> Tokenizer:
    """As in Llama 2, Vicuna and LLaVA-1.5: what is not in the vocabulary is bytes."""
    pieces = ["<unk>", "<s>", "</s>", *BYTES, "▁", *"abcdefghijklmnopqrstuvwxyz ."]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    core = Tokenizer(models.BPE(vocab, [], byte_fallback=True, unk_token="<unk>"))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    core.add_special_tokens(["<s>", "</s>"])
    return core


FALLBACK = byte_fallback()


def fallback_stream(ids):
    decoder = StreamDecoder(FALLBACK.decode, byte_tokens(FALLBACK))
    return [decoder.push(i) for i in ids] + [decoder.flush()]


@given(st.text(st.one_of(st.sampled_from("ab 你好世界é🙂."), st.characters(exclude_categories=["Cs"]))))
def test_characters_in_a_row_of_byte_fallback_tokenizers(text):
    """Every complete character at once, and all together what transformers' decode gives for the whole."""
    text = text.replace("▁", "").replace("\N{REPLACEMENT CHARACTER}", "")
    ids = FALLBACK.encode(text).ids
    pieces = fallback_stream(ids)
    theirs = PreTrainedTokenizerFast(tokenizer_object=FALLBACK).decode(ids, clean_up_tokenization_spaces=False)
    assert "".join(pieces) == FALLBACK.decode(ids) == theirs
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


def test_bytes_that_are_no_characters_do_not_spoil_their_neighbours():
    whole = FALLBACK.encode("a 你好").ids
    assert fallback_stream(whole)[-7:] == ["", "", "你", "", "", "好", ""]
    assert "".join(fallback_stream(whole[:-1])) == "a 你��"  # two bytes of a character of three: as many signs
    b = FALLBACK.token_to_id("b")
    assert "".join(fallback_stream([*whole[:-1], b])) == "a 你��b"
    assert "".join(fallback_stream([b, FALLBACK.token_to_id("<0xFF>"), *FALLBACK.encode("é b").ids[1:]])) == "b�é b"


def test_a_processor_decodes_like_its_stream(tmp_path):
    tokens = TokenSettings(eos_token_ids=(2,), template_variables={}, chat_adds_special_tokens=False)
    processor = Processor(ProcessorSettings(family="llama", tokens=tokens), FALLBACK)
    ids = [1, *FALLBACK.encode("a 你好 b").ids, 2]
    assert processor.decode(ids) == FALLBACK.decode(ids) == "a 你好 b"
    assert processor.decode(FALLBACK.encode("a 你好").ids[:-1]) == "a 你��"


def broken_tokenizers():
    core = json.loads(Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[])).to_str())
    special = {"SpecialToken": {"id": "x", "type_id": 0}}
    template = {"type": "TemplateProcessing", "single": [special], "pair": [], "special_tokens": {}}
    merging = {**core["model"], "continuing_subword_prefix": "##", "merges": [["a", "b"]], "vocab": {"a": 0, "b": 1}}
    yield {**core, "normalizer": {"type": "Precompiled", "precompiled_charsmap": ""}}
    yield {**core, "normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAAAA=="}}
    yield {**core, "pre_tokenizer": {"type": "FixedLength", "length": 0}}
    yield {**core, "post_processor": template}
    yield {**core, "model": merging}
    yield {
        **core,
        "model": {
            "type": "WordPiece",
            "unk_token": "x",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {"a": 0},
        },
    }


@pytest.mark.parametrize("broken", list(broken_tokenizers()), ids=str)
def test_a_panic_is_one_line(broken, tmp_path, capfd):
    (tmp_path / "tokenizer.json").write_text(json.dumps(broken))
    with pytest.raises(InputError, match="tokenizer.json") as caught:
        load_tokenizer(tmp_path / "tokenizer.json")
    assert "\n" not in str(caught.value) and capfd.readouterr().err == ""
    with pytest.raises(KeyboardInterrupt), rust_calls("x"):
        raise KeyboardInterrupt


def test_padding_and_truncation_of_the_file_are_off(tmp_path):
    core = Tokenizer.from_str(CORE.to_str())
    core.enable_truncation(3)
    core.enable_padding(length=9)
    core.save(str(tmp_path / "tokenizer.json"))
    assert len(load_tokenizer(tmp_path / "tokenizer.json").encode("hello").ids) == 5


def test_bad_files(tmp_path):
    with pytest.raises(InputError, match="missing"):
        load_tokenizer(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="tokenizer.json"):
        load_tokenizer(tmp_path / "tokenizer.json")
