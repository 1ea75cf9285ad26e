from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.numpy import load, save

from linmu.errors import InputError
from linmu.formats.safetensors_file import parse_header, read_header

TENSORS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(5, np.int8), "c": np.zeros((0, 4), np.int64)}


def test_header_of_a_real_file(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(save(TENSORS, {"note": "x"}))
    header = read_header(path)
    assert {name: entry.shape for name, entry in header.tensors.items()} == {"a": (2, 3), "b": (5,), "c": (0, 4)}
    assert (header.parameters, header.data_bytes, header.metadata) == (11, 29, {"note": "x"})
    assert header.data_start + header.data_bytes == path.stat().st_size


@pytest.mark.parametrize("kept", [0, 7, 8, 20, -1])
def test_truncated_file(tmp_path, kept):
    path = tmp_path / "a.safetensors"
    path.write_bytes(save(TENSORS)[:kept])
    with pytest.raises(InputError, match="a.safetensors is not a whole safetensors file"):
        read_header(path)


@pytest.mark.parametrize("content", [b"version https://git-lfs.github.com/spec/v1\n", b"PK\x03\x04" + bytes(90)])
def test_other_content(tmp_path, content):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match="other content"):
        read_header(path)


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match="cannot read"):
        read_header(tmp_path / "none.safetensors")


def entry(**changes):
    return {"t": {**{"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, **changes}}


@pytest.mark.parametrize(
    "content",
    [
        [],
        entry(dtype="F31"),
        entry(shape=[3]),
        entry(shape=[-2]),
        entry(shape=[True, 2]),
        entry(data_offsets=[8, 0]),
        entry(data_offsets=[4, 12]),
        entry(surprise=1),
        {**entry(), "u": {"dtype": "U8", "shape": [4], "data_offsets": [4, 8]}},
        {**entry(), "__metadata__": {"a": 1}},
        {"__metadata__": []},
    ],
)
def test_header_that_contradicts_itself(content):
    with pytest.raises(InputError, match="name is not a whole"):
        parse_header(json.dumps(content).encode(), 8, "name")


@given(
    at=st.integers(0, 400),
    value=st.integers(0, 255),
    cut=st.integers(0, 400),
)
def test_a_damaged_file_we_accept_is_accepted_by_the_library_too(tmp_path_factory, at, value, cut):
    raw = bytearray(save(TENSORS, {"note": "x"}))
    raw[at % len(raw)] = value
    del raw[cut:]
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    path.write_bytes(raw)
    try:
        header = read_header(path)
    except InputError as error:
        assert "\n" not in str(error)
        return
    try:
        tensors = load(bytes(raw))
    except SafetensorError as error:
        raise AssertionError(f"accepted what safetensors refuses: {error}") from error
    assert {name: item.shape for name, item in header.tensors.items()} == {n: a.shape for n, a in tensors.items()}


@given(st.binary(max_size=60), st.integers(0, 100))
def test_any_header_is_read_or_refused(raw, data_bytes):
    try:
        parse_header(raw, data_bytes, "name")
    except InputError as error:
        assert "\n" not in str(error)
