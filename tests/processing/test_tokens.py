from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from linmu.errors import InputError
from linmu.processing.tokens import StreamDecoder, load_tokenizer
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
