"""Forecasts from a stage's validations, against power laws whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from linmu.distill.logs import progress_line
from linmu.distill.outlook import kl_slope, outlook
from tests.distill.support import a_stage


def rows(tokens, kls, tokens_per_step=100):
    """validation.csv after a start without tokens."""
    start = [{"step": 0, "kl": 3.0, "trained_tokens": 0}]
    return start + [
        {"step": t / tokens_per_step, "kl": kl, "trained_tokens": t} for t, kl in zip(tokens, kls, strict=True)
    ]


def law(tokens, slope, scale=50.0):
    return [scale * t**slope for t in tokens]


@given(st.floats(-3, 3), st.floats(1e-3, 1e3), st.integers(3, 7))
def test_a_power_law_has_its_slope(slope, scale, count):
    tokens = 1000 * np.arange(1, count + 1)
    assert kl_slope(tokens, law(tokens, slope, scale)) == pytest.approx(slope, abs=1e-9)


def test_one_wild_measurement_does_not_matter():
    tokens = [1000, 2000, 3000, 5000, 7000, 11000]
    kls = law(tokens, -0.5)
    kls[2] *= 20
    assert kl_slope(tokens, kls) == pytest.approx(-0.5, abs=0.15)
    assert kl_slope([5, 5], [1, 2]) == 0.0


def test_what_is_said():
    tokens = [100_000, 200_000, 400_000]
    found = rows(tokens, law(tokens, -0.5, 0.21 * 400_000**0.5))
    # at 4,000 steps now, 8,000 in all: 0.21 / sqrt(2); half of it after four times the tokens
    assert outlook(found, 8000) == "KL 0.21 now; at this slope 0.15 at the end of the stage, 0.10 after 1.6 M tokens"
    assert outlook(found, 4000) == "KL 0.21 now; at this slope 0.10 after 1.6 M tokens"
    assert outlook(found, 20_000) == "KL 0.21 now; at this slope 0.094 at the end of the stage"
    # the end is more than ten times as far: nobody knows
    assert outlook(found, 40_001) == "KL 0.21 now; at this slope 0.10 after 1.6 M tokens"
    # half is too far: ten times the tokens
    found = rows(tokens, law(tokens, -0.1, 0.8 * 400_000**0.1))
    assert outlook(found, 4000) == "KL 0.80 now; at this slope 0.64 after 4 M tokens"
    # the end is so near that its figure is today's
    assert outlook(found, 4100) == "KL 0.80 now; at this slope 0.64 after 4 M tokens"
    found = rows([300, 600, 900], law([300, 600, 900], -1, 12.3 * 900))
    assert outlook(found, 9) == "KL 12 now; at this slope 6.2 after 1,800 tokens"


def test_when_nothing_is_said():
    tokens = [1000, 2000, 3000]
    falling = rows(tokens, [3.0, 2.0, 1.0])
    assert outlook(falling, 50) is not None
    for found in (
        [],
        falling[:3],  # two with tokens
        rows(tokens, [1.0, 1.0, 1.0]),
        rows(tokens, [1.0, 2.0, 3.0]),
        rows(tokens, [1.0, 0.9999, 0.9998]),
        rows(tokens, [1.0, 0.0, 0.5]),
        [{name: value for name, value in row.items() if name != "trained_tokens"} for row in falling],  # an older log
    ):
        assert outlook(found, 50) is None


@given(st.lists(st.floats(1e-6, 20), min_size=3, max_size=9), st.integers(1, 10**6))
def test_any_measurements_give_a_line_or_nothing(kls, steps):
    tokens = 977 * np.arange(1, len(kls) + 1)
    text = outlook(rows(tokens, kls), steps)
    assert text is None or (text.startswith("KL ") and "at this slope " in text and "nan" not in text)


def test_the_line_of_an_interval():
    row = {"step": 40, "tokens": 81920.0, "tokens_per_s": 1144.4, "loss": 0.26, "logits": 0.2134, "hidden": 0.49}
    answers = a_stage({"logits": 1.0, "hidden": 0.1})
    start, end = "stage 3 only: step 40/320 81,920 tokens ", " 1,144 tokens/s 1 h 12 min left"
    assert progress_line(answers, row, 320, 4320) == f"{start}KL 0.2134 hidden 0.49{end}"
    hot = a_stage({"logits": 1.0, "hidden": 0.1}, temperature=2.0)  # its logits loss is four KLs of soft distributions
    assert progress_line(hot, row, 320, 4320) == f"{start}loss 0.26 hidden 0.49 logits 0.2134{end}"
    assert progress_line(a_stage({"logits": 1.0}), row, 320, 4320) == f"{start}KL 0.2134{end}"
    assert progress_line(a_stage({"hidden": 1.0}), row, 320, 4320) == f"{start}loss 0.26{end}"
