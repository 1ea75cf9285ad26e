"""What XNNPACK takes of a method beyond ExecuTorch's own partitioner, run by ExecuTorch's own runtime."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("executorch")

import torch  # noqa: E402
from torch import nn  # noqa: E402

from linmu.export.phone.lowering import lower  # noqa: E402
from linmu.export.phone.methods import Method  # noqa: E402
from linmu.runtimes.et_runner import open_program  # noqa: E402
from linmu.specs import GraphSpec, TensorSpec  # noqa: E402

LONGEST = 40


class Slices(nn.Module):
    """x [1, tokens, 8] -> slices along its last axis, and along the first one of [4, tokens, 2]."""

    def forward(self, x):
        heads = (x * 1.5).view(-1, 4, 2).permute(1, 0, 2)
        return x[..., :3] * 2.0, x[..., 3:7] + 1.0, heads[1:3] * 3.0, heads[3:] - 0.5


class Tail(nn.Module):
    """x [1, tokens, 8] -> its last two tokens: a slice along the axis whose length changes."""

    def forward(self, x):
        return (x * 2.0)[:, -2:]


def _lowered(module: nn.Module, outputs: tuple[tuple[int | str, ...], ...], folder: Path):
    specs = tuple(TensorSpec(f"y{i}", "float32", shape) for i, shape in enumerate(outputs))
    method = Method(module, GraphSpec("", (TensorSpec("x", "float32", (1, "tokens", 8)),), specs))
    program, reports = lower({"forward": method}, {"forward": {"tokens": LONGEST}})
    (folder / "model.pte").write_bytes(program.buffer)
    return open_program(folder / "model.pte").load_method("forward"), reports["forward"]


def test_slices_of_any_length_are_xnnpacks(tmp_path):
    outputs = ((1, "tokens", 3), (1, "tokens", 4), (2, "tokens", 2), (1, "tokens", 2))
    method, report = _lowered(Slices(), outputs, tmp_path)
    assert (report.left, report.delegates) == ({}, 1)
    generator = torch.Generator().manual_seed(3)
    for tokens in (7, 1, LONGEST, 2, 1, 33):
        x = torch.randn(1, tokens, 8, generator=generator)
        for found, wanted in zip(method.execute([x]), Slices()(x), strict=True):
            assert torch.equal(found, wanted), tokens


def test_slices_along_the_length_that_changes_are_not(tmp_path):
    method, report = _lowered(Tail(), ((1, 2, 8),), tmp_path)
    assert report.left == {"slice_copy": 1}
    for tokens in (5, 2, LONGEST):
        x = torch.arange(8.0 * tokens).view(1, tokens, 8)
        assert torch.equal(method.execute([x])[0], Tail()(x)), tokens
