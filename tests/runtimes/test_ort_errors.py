"""What is said of graphs that this ONNX Runtime cannot open."""

from __future__ import annotations

from pathlib import Path

import pytest

from linmu.formats.precision import Precision
from linmu.runtimes import ort_errors
from linmu.runtimes.ort_errors import load_error
from linmu.system.ort_kernels import KERNELS, missing_kernels

ERROR = RuntimeError("No Op registered for LinearAttention\nmore")
PATH = Path("bundle/prefill.onnx")


@pytest.fixture
def older(monkeypatch):
    monkeypatch.setattr(ort_errors, "missing_kernels", lambda: ["LinearAttention"])


@pytest.mark.parametrize(("weights", "other"), [("fp16", "--target onnx --plain-ops"), ("int8", "--target jetson")])
def test_an_older_release_is_told_from_a_damaged_graph(older, weights, other):
    text = str(load_error(PATH, Precision(weights=weights, ops="fused"), ERROR))
    assert "without LinearAttention" in text and "onnxruntime>=1.31" in text and "Python 3.11" in text
    assert text.endswith(f"export standard operators: linmu export STUDENT {other}") and "\n" not in text


def test_plain_graphs_need_no_kernel(older):
    text = str(load_error(PATH, Precision(ops="plain"), ERROR))
    assert "got No Op registered for LinearAttention;" in text and text.endswith("export it again")


def test_a_release_that_has_all_kernels(monkeypatch):
    assert missing_kernels() == []
    fused = Precision(ops="fused")
    assert str(load_error(PATH, fused, ERROR)).endswith("export it again")

    def unlisted():
        raise AttributeError("get_all_opkernel_def")

    monkeypatch.setattr(ort_errors, "missing_kernels", unlisted)
    assert str(load_error(PATH, fused, ERROR)).endswith("export it again")
    assert KERNELS == ("LinearAttention", "CausalConvWithState")
