from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linmu.errors import BundleError
from linmu.formats.pte_file import HEAD_BYTES, IDENTIFIER, MAGIC, check_program_file


def program(flatbuffer: int, segments: int, offset: int = 256) -> bytes:
    """A file with a true header and zeros for content."""
    head = b"\x40\0\0\0" + IDENTIFIER + MAGIC + struct.pack("<IQQQ", 32, flatbuffer, offset, segments)
    return head + bytes(max(offset + segments if offset else flatbuffer, HEAD_BYTES) - len(head))


@settings(deadline=None)
@given(st.integers(60, 250), st.integers(0, 999), st.sampled_from([0, 256]), st.data())
def test_a_file_is_whole_or_refused(tmp_path_factory, flatbuffer, segments, offset, data):
    content = program(flatbuffer, segments, offset)
    path = tmp_path_factory.mktemp("pte") / "model.pte"
    path.write_bytes(content)
    assert check_program_file(path) == len(content)
    cut = data.draw(st.integers(0, len(content) - 1))
    path.write_bytes(content[:cut])
    with pytest.raises(BundleError, match="model.pte is cut short; got .*bytes") as caught:
        check_program_file(path)
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)


@pytest.mark.parametrize("place", (4, 8), ids=("identifier", "header"))
def test_another_format_is_named(place, tmp_path):
    content = bytearray(program(100, 50))
    content[place : place + 4] = b"ET11" if place == 4 else b"eh99"
    path = tmp_path / "model.pte"
    path.write_bytes(content)
    with pytest.raises(BundleError, match="no ExecuTorch program of this version.*export the bundle again"):
        check_program_file(path)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(BundleError, match="cannot read .*model.pte"):
        check_program_file(tmp_path / "model.pte")
