"""Tokenizers and processor settings of strangers: panics, blow-ups and sizes that no model has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from linmu.demo import student_folder
from linmu.errors import InputError
from linmu.processing.convert import write_processor
from linmu.processing.settings_file import read_settings
from linmu.processing.tokens import load_tokenizer, to_ids

TOKENIZER = student_folder() / "tokenizer.json"
DOUBLES = [{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 40


def spoilt(folder: Path, **changes) -> Path:
    document = json.loads(TOKENIZER.read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**document, **changes}))
    return folder / "tokenizer.json"


def test_a_tokenizer_that_is_right(tmp_path):
    assert len(to_ids(load_tokenizer(spoilt(tmp_path)), "a b", False)) > 0


@pytest.mark.parametrize(
    "changes",
    [
        {"normalizer": {"type": "Sequence", "normalizers": DOUBLES}},
        {"normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "x" * 100}},
        {"normalizer": {"type": "Prepend", "prepend": "x" * 10_000}},
        {"model": {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 9}},
        {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["b", "c"]]}},
        {"added_tokens": "x"},
    ],
)
def test_tokenizers_that_are_refused_in_a_line(tmp_path, changes):
    with pytest.raises(InputError) as caught:
        load_tokenizer(spoilt(tmp_path, **changes))
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processor")
    write_processor(student_folder(), folder)
    return json.loads((folder / "processor.json").read_text())


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("image", "longest_edge", 2**31),
        ("image", "longest_edge", 0),
        ("image", "tile", -1),
        ("image", "mean", [0.5]),
        ("image", "std", [0.5, 0.0, 0.5]),
        ("image", "resample", 9),
        ("image", "rescale_factor", 0.0),
        ("tokens", "tile_grid", [2**20, 2**20]),
        ("tokens", "tile_grid", [5]),
        ("tokens", "eos_token_ids", [-2]),
        ("tokens", "image", ""),
        ("tokens", "image", "x" * 9999),
        ("image", "mean", [10**400] * 3),
    ],
)
def test_settings_out_of_bounds(tmp_path, written, part, name, value):
    document = {**written, part: {**written[part], name: value}}
    (tmp_path / "processor.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match="processor.json"):
        read_settings(tmp_path / "processor.json")
