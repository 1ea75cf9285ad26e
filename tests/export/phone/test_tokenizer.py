"""Tokenizers for phones: ExecuTorch's C++ tokenizer gives the ids of the tokenizers library."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from linmu.demo import student_folder
from linmu.export.phone.tokenizer import match_everything

TEXTS = ("Name three things that float on water.", "AB9 x\n\n12 €", "héllo  wörld", "<image>What color is it?")


def _byte_level(folder, *steps):
    vocab = {token: i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    core.decoder = decoders.ByteLevel()
    core.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """(tokenizers' tokenizer of the demo as it ships, path of the rewritten file)."""
    path = tmp_path_factory.mktemp("demo") / "tokenizer.json"
    path.write_bytes((student_folder() / "tokenizer.json").read_bytes())
    shipped = Tokenizer.from_file(str(path))
    assert match_everything(path)
    return shipped, path


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=40))
def test_the_library_gives_the_same_ids(demo, text):
    shipped, path = demo
    again = Tokenizer.from_file(str(path))
    assert again.encode(text, add_special_tokens=False).ids == shipped.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("text", TEXTS)
def test_executorchs_tokenizer_gives_the_same_ids(demo, text):
    cpp = pytest.importorskip("pytorch_tokenizers").CppHFTokenizer()
    shipped, path = demo
    cpp.load(str(path))
    assert cpp.encode(text, 0, 0) == shipped.encode(text, add_special_tokens=False).ids


def test_what_needs_nothing_is_left(tmp_path):
    path = _byte_level(tmp_path, pre_tokenizers.Digits(individual_digits=True))
    before = path.read_bytes()
    assert not match_everything(path) and path.read_bytes() == before
    path = _byte_level(tmp_path, pre_tokenizers.Split(Regex("[0-9]"), "removed"))
    assert not match_everything(path)


def test_a_pattern_that_is_no_class(tmp_path):
    path = _byte_level(tmp_path, pre_tokenizers.Split(Regex("ab|c+"), "isolated"))
    before = Tokenizer.from_file(str(path))
    assert match_everything(path)
    assert "(?!ab|c+)" in json.dumps(json.loads(path.read_text("utf-8")))
    after = Tokenizer.from_file(str(path))
    for text in ("xxabccab y\nz", "", "abc"):
        assert after.pre_tokenizer.pre_tokenize_str(text) == before.pre_tokenizer.pre_tokenize_str(text)
