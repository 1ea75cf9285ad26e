"""States rounded to float16, and back."""

from __future__ import annotations

import numpy as np
import pytest

from linmu.errors import InputError
from linmu.formats.state_precision import (
    LARGEST_HALF,
    STATE_PRECISIONS,
    exact_specs,
    read_exact,
    state_precision,
    store,
)
from linmu.specs import StateSpec

AXES = ("batch", "heads", "key_dim", "value_dim")
SHAPE = (2, 3, 5, 7)
CONV = StateSpec("past.4.conv", "present.4.conv", "float32", (2, 11, 13), ("batch", "taps", "channels"))


def specs(precision: str) -> list[StateSpec]:
    return [CONV, StateSpec("past.4.recurrent", "present.4.recurrent", STATE_PRECISIONS[precision], SHAPE, AXES)]


@pytest.mark.parametrize(("precision", "step"), [("fp32", 0.0), ("fp16", 2**-11)])
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


def test_exact_states_are_float32_whatever_is_stored() -> None:
    assert exact_specs(specs("fp16")) == exact_specs(specs("fp32")) == tuple(specs("fp32"))


def test_names() -> None:
    assert state_precision(None) == "fp32" and state_precision("fp16") == "fp16"
    with pytest.raises(InputError, match="fp8.*one of fp32, fp16"):
        state_precision("fp8")
    with pytest.raises(InputError, match="--state int8 is not exported.*fp32 or fp16"):
        state_precision("int8")
