"""Rotary angles on every target: within 1e-6 radians of arithmetic with 50 digits, at every position that counts."""

from __future__ import annotations

from functools import cache

import mpmath
import numpy as np
import onnxruntime as ort
import pytest
import torch
import transformers as hf
from torch import nn

from linmu.conversion.convert import convert
from linmu.export.jetson.ops import JetsonOps
from linmu.export.onnx.graph_builder import GraphBuilder
from linmu.export.onnx.ops import OnnxOps
from linmu.export.onnx.plain_ops import PlainOps
from linmu.export.phone.ops import PhoneOps
from linmu.export.phone.weights import Buffers, program_weights
from linmu.model.rotary import frequency_matrix
from linmu.specs import TensorSpec
from linmu.step.exact_angles import DIGIT, DIGITS, digit_values, turn_tables
from linmu.step.pack import decoder_form
from linmu.step.torch_ops import TorchOps
from tests.model.students import shared_student
from tests.tiny import text_settings

POSITIONS = [0, 1, 2, 1023, 1024, 5_000, 99_999, 100_000, 1_048_576, 9_999_991, 10_000_000, 16_777_217, 2**31 + 5]
LARGEST_ERROR = 1e-6
SCALED = {
    "yarn": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 512},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "original_max_position_embeddings": 1024,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    },
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0},
}


@cache
def _student(family: str):
    if family not in SCALED:
        return shared_student(family)[0]
    torch.manual_seed(4)
    settings = text_settings(97, head_dim=True, rope_parameters=SCALED[family])
    return convert(hf.LlamaForCausalLM(hf.LlamaConfig(**settings)).eval())


def _positions(axes: int, most: int = POSITIONS[-1]) -> np.ndarray:
    """[P, N], other numbers on every axis."""
    positions = [position for position in POSITIONS if position <= most]
    return np.array([np.roll(positions, 3 * axis) for axis in range(axes)], np.int64)


def _exact(frequencies: np.ndarray, positions: np.ndarray, factor: float) -> np.ndarray:
    """Cos | sin [N, d] in arithmetic with 50 digits."""
    with mpmath.workdps(50):
        table = []
        for place in positions.T:
            angles = [
                sum(int(p) * mpmath.mpf(float(f)) for p, f in zip(place, column, strict=True))
                for column in frequencies.T
            ]
            table.append([float(f(a)) * factor for f in (mpmath.cos, mpmath.sin) for a in angles])
    return np.array(table)


def _graph(table, form, positions, folder) -> np.ndarray:
    graph = GraphBuilder({}, "weights.data", 19 if table is JetsonOps else 21)
    shape = (3, 1, "N") if form.rope_axes == 3 else (1, "N")
    tables = table(graph, form).rope_tables("position_ids", form)
    out = [TensorSpec(name, "float32", ("N", form.head_dim // 2)) for name in ("cos", "sin")]
    named = {spec.name: (value, spec) for spec, value in zip(out, tables, strict=True)}
    graph.save(folder / "tables.onnx", [TensorSpec("position_ids", "int64", shape)], named)
    assert len(graph.nodes) <= 17  # once a call, not once a layer
    feeds = {"position_ids": positions[:, None] if form.rope_axes == 3 else positions}
    return np.concatenate(ort.InferenceSession(folder / "tables.onnx").run(["cos", "sin"], feeds), 1)


@pytest.mark.parametrize("table", (TorchOps, OnnxOps, PlainOps, JetsonOps, PhoneOps))
@pytest.mark.parametrize("family", ("qwen2", "qwen2_5_vl", "qwen3_vl", *SCALED))
def test_tables_are_exact_at_any_position(family, table, tmp_path):
    student = _student(family)
    form = decoder_form(student)
    positions = _positions(form.rope_axes)
    if issubclass(table, OnnxOps):
        found = _graph(table, form, positions, tmp_path)
    else:
        ids = torch.from_numpy(positions[:, None] if form.rope_axes == 3 else positions)
        ops = TorchOps(form) if table is TorchOps else PhoneOps(form, Buffers(nn.Module(), program_weights(form)))
        tables = [x.reshape(len(POSITIONS), -1)[:, : form.head_dim // 2] for x in ops.rope_tables(ids, form)]
        found = torch.cat(tables, 1).numpy()
    expected = _exact(form.weights["rope"]().numpy(), positions, form.rope_scale)
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() < LARGEST_ERROR
    assert (form.rope_scale != 1) == (family == "yarn")


@pytest.mark.parametrize("dtype, limit", [(torch.float64, 1e-12), (torch.float32, LARGEST_ERROR)])
@pytest.mark.parametrize("family", ("llama", "qwen2_5_vl", "qwen3_vl", *SCALED))
def test_students_turn_by_exact_angles(family, dtype, limit):
    """At positions that float64 has room for; a teacher's own tables are off by far more there."""
    student = _student(family)
    rotary, axes = student.get_decoder().rotary_emb, 1 if student.linmu_family.rope == "plain" else 3
    positions = _positions(axes, 10_000_000)
    ids = torch.from_numpy(positions[:, None] if axes == 3 else positions)
    cos, sin = rotary(torch.zeros(1, dtype=dtype), position_ids=ids)
    half = cos.shape[-1] // 2
    assert cos.dtype == sin.dtype == dtype and torch.equal(cos[..., :half], cos[..., half:])
    found = torch.cat([cos[0, :, :half], sin[0, :, :half]], 1).numpy()
    frequencies = frequency_matrix(rotary, student.linmu_family).numpy()
    expected = _exact(frequencies, positions, rotary.attention_scaling)
    assert np.abs(found - expected).max() < limit
    teachers = rotary.forward(torch.zeros(1), ids)[0][0, :, :half].numpy()  # goes past the hook
    assert np.abs(teachers - expected[:, :half]).max() > 1e-4


def test_tables_hold_what_their_digits_are_worth():
    """Whole and fine parts are as small as exact sums need, and together the frequency modulo whole turns."""
    frequencies = np.array([[1.0, 0.3, 3.5], [0.0, 0.0, 0.0]], np.float32)
    tables = turn_tables(frequencies)
    coarse, fine = tables[..., :3].astype(np.float64), tables[..., 3:].astype(np.float64)
    assert tables.shape == (2, DIGITS, 1, 6) and not tables[1].any()
    assert np.array_equal(coarse * 8192, np.round(coarse * 8192)) and np.abs(coarse).max() <= 0.5
    assert DIGITS * (DIGIT - 1) * 0.5 * 8192 < 2**24 and np.abs(fine).max() <= 2 * np.pi / 16384 * 1.000001
    for digit, value in enumerate(digit_values()):
        turns = frequencies[0].astype(np.float64) * value / (2 * np.pi)
        rest = turns - coarse[0, digit, 0] - fine[0, digit, 0] / (2 * np.pi)
        assert np.abs(rest - np.round(rest)).max() < 1e-6  # what float64 leaves of 2^30 frequencies
