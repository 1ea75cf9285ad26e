from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from linmu.processing.token_bytes import _BYTES, TokenBytes
from tests.processing.test_tokens import FALLBACK
from tests.tiny import tiny_tokenizer

CORE = tiny_tokenizer("llama").backend_tokenizer


def test_the_table_of_bytes_is_that_of_the_tokenizers_library():
    assert set(_BYTES) == set(pre_tokenizers.ByteLevel.alphabet()) and len(set(_BYTES.values())) == 256
    assert all(_BYTES[chr(code)] == bytes([code]) for code in range(0x21, 0x7F))


@given(st.text(st.one_of(st.sampled_from("ab 你🙂."), st.characters(exclude_categories=["Cs"]))))
def test_bytes_of_tokens_joined_are_the_text(text):
    ids = CORE.encode(text, add_special_tokens=False).ids
    assert b"".join(map(TokenBytes(CORE).of, ids)) == text.encode()
    text = text.replace("▁", "")
    ids = FALLBACK.encode(text, add_special_tokens=False).ids
    assert b"".join(map(TokenBytes(FALLBACK).of, ids)) in ((" " + text).encode(), text.encode())  # it puts one in front


def test_control_tokens_have_their_names_and_other_ids_nothing():
    assert TokenBytes(CORE).of(CORE.token_to_id("<|im_end|>")) == b"<|im_end|>"
    assert TokenBytes(CORE).of(10**6) == b"" == TokenBytes(FALLBACK).of(10**6)
    assert TokenBytes(FALLBACK).of(FALLBACK.token_to_id("<0xE4>")) == b"\xe4"
