from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linmu.errors import BundleError
from linmu.formats.manifest import DTYPE_BYTES
from linmu.runtimes.shape_ranges import Range
from linmu.runtimes.tensorrt.plan import ALIGNMENT, bind_dimensions, check_engine, plan_arena
from linmu.specs import GraphSpec, TensorSpec

DIMS = {"tokens": Range(1, 5, 9), "batch": Range(1, 1, 1)}
SPEC = GraphSpec(
    "g.onnx",
    (TensorSpec("ids", "int64", ("batch", "tokens")), TensorSpec("x", "float16", ("tokens", 7))),
    (TensorSpec("logits", "float32", ("batch", 3)),),
)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(sorted(DTYPE_BYTES)), st.lists(st.sampled_from([0, 1, 3, 50, "tokens"])))))
def test_places_are_aligned_disjoint_and_large_enough(tensors):
    arena = plan_arena([TensorSpec(f"t{i}", d, tuple(s)) for i, (d, s) in enumerate(tensors)], DIMS)
    end = 0
    for (dtype, shape), place in zip(tensors, arena.places.values(), strict=True):
        count = 1
        for dim in shape:
            count *= DIMS[dim].max if isinstance(dim, str) else dim
        assert place.offset % ALIGNMENT == 0 and place.offset >= end
        assert place.nbytes == count * DTYPE_BYTES[dtype]
        end = place.offset + max(place.nbytes, 1)  # an empty tensor has an address that is nobody else's
    assert arena.nbytes >= end


def test_dimensions_of_a_call():
    assert bind_dimensions(SPEC, {"ids": (1, 4), "x": (4, 7)}) == {"batch": 1, "tokens": 4}


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"ids": (1, 4)}, "'x'; got missing"),
        ({"ids": (1, 4), "x": (4, 7), "y": (1,)}, "'y'; got missing or surplus"),
        ({"ids": (1, 4), "x": (4, 7, 1)}, r"'x'; got shape \[4, 7, 1\]"),
        ({"ids": (1, 4), "x": (5, 7)}, "tokens = 4"),
        ({"ids": (1, 4), "x": (4, 8)}, "7 = 7"),
    ],
)
def test_contradicting_calls_are_named(shapes, message):
    with pytest.raises(BundleError, match=message):
        bind_dimensions(SPEC, shapes)


INPUTS = [TensorSpec("ids", "int64", (-1, -1)), TensorSpec("x", "float16", (-1, 7))]
OUTPUTS = [TensorSpec("logits", "float32", (1, 3))]


def test_an_engine_may_fix_what_has_one_value():
    check_engine("g", SPEC, DIMS, INPUTS, OUTPUTS)
    fixed = [replace(INPUTS[0], shape=(1, -1)), INPUTS[1]]
    check_engine("g", SPEC, DIMS, fixed, [replace(OUTPUTS[0], shape=(-1, 3))])


def test_an_output_may_be_known_later_and_an_input_not():
    check_engine("g", SPEC, DIMS, INPUTS, [replace(OUTPUTS[0], shape=(-1, -1))])
    with pytest.raises(BundleError, match="input 'x'"):
        check_engine("g", SPEC, DIMS, [INPUTS[0], replace(INPUTS[1], shape=(-1, -1))], OUTPUTS)


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        (INPUTS[:1], OUTPUTS, "input 'x' is not in the engine"),
        ([*INPUTS, TensorSpec("z", "int8", (1,))], OUTPUTS, "input 'z' is not in the manifest"),
        ([replace(INPUTS[0], dtype="int32"), INPUTS[1]], OUTPUTS, "'ids'; got int32"),
        ([INPUTS[0], replace(INPUTS[1], shape=(-1, 6))], OUTPUTS, "'x'; got"),
        ([INPUTS[0], replace(INPUTS[1], shape=(5, 7))], OUTPUTS, "'x'; got"),
        ([INPUTS[0], replace(INPUTS[1], shape=(-1, 7, 1))], OUTPUTS, "'x'; got"),
        (INPUTS, [], "output 'logits' is not in the engine"),
        (INPUTS, [replace(OUTPUTS[0], shape=(2, 3))], "output 'logits'"),
    ],
)
def test_an_engine_of_another_graph_is_refused(inputs, outputs, message):
    with pytest.raises(BundleError, match=message):
        check_engine("g", SPEC, DIMS, inputs, outputs)
