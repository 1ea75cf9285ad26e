from __future__ import annotations

import pytest

from linmu.errors import InputError
from linmu.system.units import duration, seconds_of, size


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


@pytest.mark.parametrize(
    "text, expected", [("5", 5), ("5s", 5), ("500ms", 0.5), ("1.5m", 90), ("2 min", 120), ("1h", 3600), (" 3s ", 3)]
)
def test_times_as_people_write_them(text, expected):
    assert seconds_of(text, "--every") == expected


@pytest.mark.parametrize("text", ["", "s", "-5s", "5 s 3", "1e3", "5d", "nan", "inf", "٣s"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(InputError, match="a time \\(--every\\)"):
        seconds_of(text, "--every")
