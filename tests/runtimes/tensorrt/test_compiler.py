"""Compilers that die: what is said of a process that a signal ended, whatever it had written by then."""

from __future__ import annotations

import os
import signal
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from onnx import helper, numpy_helper

from linmu.errors import DeviceError
from linmu.runtimes.tensorrt import compiler
from linmu.runtimes.tensorrt.compiler import compile_engine


@pytest.mark.parametrize(
    ("sign", "said"),
    [(signal.SIGKILL, r"killed by SIGKILL .*out of memory"), (signal.SIGSEGV, "killed by SIGSEGV, building")],
)
def test_a_line_that_a_kill_cut_in_two_is_told_as_a_death(tmp_path, monkeypatch, sign, said) -> None:
    monkeypatch.setattr(compiler, "PROGRAM", "tests.runtimes.tensorrt.cut_off")
    monkeypatch.setenv("CUT_OFF_SIGNAL", str(int(sign)))
    monkeypatch.setenv("CUT_OFF_ANSWER", "TensorRT says hello\n17\n")  # lines of somebody else
    steps = []
    with pytest.raises(DeviceError, match=f"step.onnx: tensorrt died while compiling; got {said}") as caught:
        compile_engine(tmp_path / "step.onnx", {}, flavour="tensorrt", progress=lambda *step: steps.append(step))
    assert steps == [("compiling", 3, 17)]
    message = str(caught.value)
    assert "building tactics f" in message and "\n" not in message


def test_an_answer_that_came_whole_counts(tmp_path, monkeypatch) -> None:
    answer = '{"seconds": 1.5, "engine_bytes": 7, "peak_bytes": 19, "layers": 2, "version": "10.3"}\n'
    monkeypatch.setattr(compiler, "PROGRAM", "tests.runtimes.tensorrt.cut_off")
    monkeypatch.setenv("CUT_OFF_SIGNAL", str(int(signal.SIGKILL)))
    monkeypatch.setenv("CUT_OFF_ANSWER", answer)
    found = compile_engine(tmp_path / "step.onnx", {}, flavour="tensorrt")
    assert (found.seconds, found.engine_bytes, found.layers) == (1.5, 7, 2)


@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
def test_the_real_compiler_killed_at_work(tmp_path) -> None:
    """It cannot be done before the kill comes: its engine goes into a pipe that nobody reads."""

    def kill(*_: object) -> None:
        for child in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split():
            if compiler.PROGRAM.encode() in Path(f"/proc/{child}/cmdline").read_bytes():
                os.kill(int(child), signal.SIGKILL)

    os.mkfifo(tmp_path / "engine")
    path, shapes = product(tmp_path / "prefill.onnx"), {"x": [[1, 6], [8, 6], [64, 6]]}
    with pytest.raises(DeviceError, match=r"prefill.onnx: .*killed by SIGKILL .*out of memory"):
        compile_engine(
            path, shapes, flavour="tensorrt_rtx", capability="8.6", engine=tmp_path / "engine", progress=kill
        )


def product(path: Path) -> Path:
    """One matrix product [tokens, 6] x [6, 5]."""
    sides = [helper.make_tensor_value_info(name, 1, ["tokens", n]) for name, n in (("x", 6), ("y", 5))]
    weight = numpy_helper.from_array(np.full((6, 5), 0.5, np.float32), "w")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", sides[:1], sides[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return path
