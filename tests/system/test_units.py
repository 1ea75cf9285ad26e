from __future__ import annotations

import pytest

from linmu.system.units import duration, size


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3, "0 s"),
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (89, "1 min"),
        (3569, "59 min"),
        (3571, "1 h 0 min"),
        (4320, "1 h 12 min"),
        (86369, "23 h 59 min"),
        (86371, "1 d 0 h"),
        (3.2 * 86400, "3 d 5 h"),
    ],
)
def test_times(seconds, text):
    assert duration(seconds) == text


def test_sizes():
    assert [size(count) for count in (7, 1536, 5 * 2**20, 2**44)] == ["7 B", "1.5 KiB", "5.0 MiB", "16.0 TiB"]
