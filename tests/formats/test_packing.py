from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper

from linmu.formats.matrix_format import MatrixFormat
from linmu.formats.packing import block_rows, pack, pack_scale, packing_of, unpack

INT4, INT8 = MatrixFormat("int4", 16), MatrixFormat("int8", 16)


def integers(format: MatrixFormat, rows: int, columns: int, seed: int) -> np.ndarray:
    low, high = (-8, 8) if format.bits == 4 else (-128, 128)
    return np.random.default_rng(seed).integers(low, high, (rows, columns)).astype(np.int8)


@given(st.sampled_from([INT4, INT8]), st.integers(1, 4), st.integers(1, 7), st.integers(0, 99))
def test_every_packing_gives_the_integers_back(format: MatrixFormat, groups: int, columns: int, seed: int) -> None:
    q = integers(format, 16 * groups, columns, seed)
    for packing in ("blocks", "nibbles" if format.bits == 4 else "plain"):
        packed = pack(q, format, packing)
        assert packed.nbytes * 8 == q.size * format.bits
        np.testing.assert_array_equal(unpack(packed, format, packing, q.shape), q)


def test_nibbles_are_onnx_own_packing() -> None:
    q = integers(INT4, 16, 5, 3)
    tensor = TensorProto(data_type=TensorProto.INT4, dims=q.shape, raw_data=pack(q, INT4, "nibbles").tobytes())
    np.testing.assert_array_equal(numpy_helper.to_array(tensor).astype(np.int8), q)


def test_an_odd_number_of_nibbles_fills_the_last_byte() -> None:
    q = np.array([[-8], [7], [-1]], np.int8)
    packed = pack(q, INT4, "nibbles")
    assert packed.tolist() == [0x78, 0x0F]
    assert onnx.helper.tensor_dtype_to_np_dtype(TensorProto.INT4) is not None


@pytest.mark.parametrize("format", [INT4, INT8])
def test_block_rows_are_the_columns_of_the_matrix(format: MatrixFormat) -> None:
    q = integers(format, 48, 7, 5)
    scale = np.random.default_rng(6).random((3, 7)).astype(np.float32)
    value = q.astype(np.float32) * np.repeat(scale, 16, axis=0)
    index = np.array([6, 0, 6])
    rows = block_rows(pack(q, format, "blocks"), pack_scale(scale, "blocks"), format, index)
    np.testing.assert_array_equal(rows, value[:, index].T)


def test_which_packing_a_target_uses() -> None:
    assert packing_of(INT4, fused=True) == packing_of(INT8, fused=True) == "blocks"
    assert packing_of(INT4, fused=False) == "nibbles"
    assert packing_of(MatrixFormat("int8", input="int8"), fused=True) == "plain"
    assert packing_of(MatrixFormat("fp8", input="fp8"), fused=False) == "plain"


@pytest.mark.parametrize(
    "bad", [{"weights": "int3"}, {"weights": "int8", "input": "int4"}, {"weights": "int4", "group": -1}]
)
def test_unknown_formats_are_refused(bad: dict) -> None:
    with pytest.raises(ValueError, match="unknown matrix format"):
        MatrixFormat.from_json(bad)
