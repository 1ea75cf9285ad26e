"""Where outputs may not go."""

from __future__ import annotations

import pytest

from linmu.errors import InputError
from linmu.files.separate import require_separate


def test_folders_beside_each_other(tmp_path):
    require_separate(tmp_path / "out", tmp_path / "in", str(tmp_path / "out2"))


@pytest.mark.parametrize("out", ["in", "in/x", "in/../in", "link", "link/x", "."])
def test_a_folder_in_or_around_an_input(tmp_path, out):
    (tmp_path / "in").mkdir()
    (tmp_path / "link").symlink_to("in")
    with pytest.raises(InputError, match="two folders, neither in the other"):
        require_separate(tmp_path / out, tmp_path / "other", tmp_path / "in")


def test_a_place_without_end(tmp_path):
    with pytest.raises(InputError, match="cannot use"):
        require_separate(tmp_path / "nul\0", tmp_path)
