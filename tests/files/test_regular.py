from __future__ import annotations

import os

import pytest

from linmu.errors import BundleError, InputError
from linmu.files.regular import inside, regular_file
from linmu.files.strict_json import parse_json, read_json


def test_what_is_no_regular_file_is_not_opened(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("file")
    assert regular_file(tmp_path / "file", "a") == tmp_path / "file"
    assert regular_file(tmp_path / "link", "a") == tmp_path / "link"
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("fifo", "loop", "none", "nul\0", "half\ud800", "x" * 300, ""):
        with pytest.raises(InputError, match="cannot read the thing"):
            regular_file(tmp_path / name, "the thing")


@pytest.mark.parametrize("name", ["", "..", "../x", "a/../../x", "/etc/hostname", "~/x", "C:x", "a\\b", "nul\0", "out"])
def test_names_that_leave_the_folder(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "x").touch()
    (tmp_path / "folder" / "out").symlink_to("../x")
    with pytest.raises(InputError, match="leaves"):
        inside(tmp_path / "folder", name, "data")


def test_names_that_stay_inside(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "back").symlink_to("../file")
    for name in ("file", "deep/file", "deep/back"):
        assert inside(tmp_path, name, "data") == tmp_path / name


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1, "a": 1}',
        "NaN",
        "[Infinity]",
        "-Infinity",
        "1e999",
        '"\\ud800"',
        "9" * 5000,
        "[" * 100_000,
        "",
        b"\xff",
        '{"a": "\\uDCff"}',
        "123456789012345678901234",
    ],
)
def test_json_that_two_readers_could_read_in_two_ways(text):
    with pytest.raises(BundleError, match="the document is not valid JSON") as caught:
        parse_json(text, "the document", BundleError)
    assert "\n" not in str(caught.value)


def test_plain_json(tmp_path):
    (tmp_path / "a").write_text('{"a": [1, -2.5e3, "\\u00e9\\ud83d\\ude00", null, 9223372036854775807]}')
    assert read_json(tmp_path / "a", "a") == {"a": [1, -2500.0, "é😀", None, 2**63 - 1]}
    with pytest.raises(BundleError, match="cannot read the thing"):
        read_json(tmp_path / "none", "the thing", BundleError)
