"""Rows of a state rounded to int8 and float16, and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from linmu.errors import InputError
from linmu.formats.manifest import state_bytes
from linmu.formats.state_precision import (
    LARGEST_HALF,
    exact_specs,
    is_scale,
    read_exact,
    recurrent_specs,
    round_rows,
    state_precision,
    store,
)
from linmu.specs import StateSpec

AXES = ("batch", "heads", "key_dim", "value_dim")
SHAPE = (2, 3, 5, 7)
CONV = StateSpec("past.4.conv", "present.4.conv", "float32", (2, 11, 13), ("batch", "taps", "channels"))
numbers = st.floats(-1e6, 1e6, width=32).map(lambda x: x if abs(x) > 1e-30 else 0.0)  # scales keep all their bits
rows = hnp.arrays(np.float32, hnp.array_shapes(min_dims=1, max_dims=4, max_side=6), elements=numbers)


def specs(precision: str) -> list[StateSpec]:
    return [CONV, *recurrent_specs(4, SHAPE, AXES, precision)]


@given(rows)
@settings(max_examples=200, deadline=None)
def test_codes_are_the_nearest_and_scales_cover_the_row(values) -> None:
    codes, scale = round_rows(values)
    assert codes.dtype == np.int8 and scale.dtype == np.float32 and scale.shape == (*values.shape[:-1], 1)
    np.testing.assert_array_equal(scale, np.abs(values).max(-1, keepdims=True) / np.float32(127))
    assert np.abs(codes.astype(int)).max() <= 127
    assert not codes[np.broadcast_to(scale == 0, codes.shape)].any()
    error = np.abs(codes * scale.astype(np.float64) - values)
    assert (error <= scale * (0.5 + 1e-4)).all()
    peaks = np.abs(codes.astype(int)).max(-1, keepdims=True)
    assert (peaks[scale > 0] == 127).all()


@given(rows)
@settings(max_examples=100, deadline=None)
def test_what_was_rounded_once_stays(values) -> None:
    codes, scale = round_rows(values)
    again, other = round_rows(codes * scale)
    np.testing.assert_array_equal(again, codes)
    np.testing.assert_allclose(other, scale, rtol=1e-6)


@pytest.mark.parametrize(("precision", "step"), [("fp32", 0.0), ("fp16", 2**-11), ("int8", 1 / 254)])
def test_store_and_read(precision, step) -> None:
    rng = np.random.default_rng(0)
    exact = {"past.4.conv": rng.standard_normal(CONV.shape).astype(np.float32)}
    exact["past.4.recurrent"] = rng.standard_normal(SHAPE).astype(np.float32)
    stored = store(specs(precision), exact)
    assert {name: (str(x.dtype), x.shape) for name, x in stored.items()} == {
        spec.name: (spec.dtype, spec.shape) for spec in specs(precision)
    }
    back = read_exact(specs(precision), stored)
    assert set(back) == set(exact) and all(x.dtype == np.float32 for x in back.values())
    np.testing.assert_array_equal(back["past.4.conv"], exact["past.4.conv"])
    values = exact["past.4.recurrent"]
    allowed = step * np.abs(values).max(-1, keepdims=True) * 1.0001
    assert (np.abs(back["past.4.recurrent"] - values) <= allowed).all()
    assert (back["past.4.recurrent"] != values).any() == (precision != "fp32")


def test_float16_saturates() -> None:
    exact = {"past.4.conv": np.zeros(CONV.shape, np.float32), "past.4.recurrent": np.full(SHAPE, 1e6, np.float32)}
    assert (store(specs("fp16"), exact)["past.4.recurrent"] == np.float16(LARGEST_HALF)).all()


def test_the_tensors_of_each_precision() -> None:
    assert [state_bytes(recurrent_specs(4, SHAPE, AXES, name)) for name in ("fp32", "fp16", "int8")] == [
        4 * 210,
        2 * 210,
        210 + 4 * 30,
    ]
    assert [spec.name for spec in specs("int8") if is_scale(spec.name)] == ["past.4.recurrent_scale"]
    assert exact_specs(specs("int8")) == exact_specs(specs("fp16")) == tuple(specs("fp32"))


def test_names() -> None:
    assert state_precision(None) == "fp32" and state_precision("fp16") == "fp16"
    with pytest.raises(InputError, match="fp8.*one of fp32, fp16"):
        state_precision("fp8")
    with pytest.raises(InputError, match="--state int8 is not exported.*fp32 or fp16"):
        state_precision("int8")
