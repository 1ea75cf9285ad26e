"""The benchmarks' own arithmetic: turns, medians, profiles, weight bytes, forecasts, children that fail."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from tests.paths import ROOT

BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def importable():
    """The benchmark modules, importable as when they are run as scripts."""
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


def event(name: str, operator: str, microseconds: int) -> dict:
    """One kernel event as ONNX Runtime's profile has it."""
    args = {"op_name": operator}
    return {"cat": "Node", "name": f"{name}_kernel_time", "dur": microseconds, "args": args}


def test_cases_take_turns_and_medians_resist_one_slow_round():
    from harness import interleave, medians

    order: list[str] = []
    seconds = {"a": iter((1.0, 50.0, 3.0)), "b": iter((7.0, 5.0, 9.0))}

    def case(name):
        order.append(name)
        return next(seconds[name])

    samples = interleave({name: lambda name=name: case(name) for name in seconds}, rounds=3)
    assert order == ["a", "b", "a", "b", "a", "b"]
    assert medians(samples) == {"a": 3.0, "b": 7.0}


def test_profile_leaves_warm_up_out_and_counts_nameless_nodes():
    from op_profile import add_up

    one_run = [event("m1", "MatMul", 3000), event("", "Add", 500), event("", "Add", 250)]
    slow = [{**item, "dur": 90_000} for item in one_run]
    other = [{"cat": "Session", "name": "model_run", "dur": 10**6}]
    rows = add_up(slow + other + one_run + one_run + one_run, warm_up=1, runs=3)
    assert [(row["operator"], row["nodes"], row["ms"]) for row in rows] == [("MatMul", 1, 3.0), ("Add", 2, 0.75)]
    assert rows[0]["share"] == pytest.approx(0.8)


def test_weight_bytes_counts_products_once_and_tables_never(tmp_path):
    onnx = pytest.importorskip("onnx")
    from op_profile import weight_bytes

    helper = onnx.helper
    constants = [
        onnx.numpy_helper.from_array(np.ones(shape, np.float32), name)
        for name, shape in (("w", (3, 5)), ("tied", (11, 5)), ("table", (7, 2)))
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("MatMul", ["x", "w"], ["h2"]),
        helper.make_node("Transpose", ["tied"], ["head"], perm=[1, 0]),
        helper.make_node("Gather", ["tied", "i"], ["e"]),
        helper.make_node("Gather", ["table", "i"], ["t"]),
        helper.make_node("MatMul", ["h", "head"], ["y"]),
    ]
    inputs = [
        helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3]),
        helper.make_tensor_value_info("i", onnx.TensorProto.INT64, [1]),
    ]
    outputs = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in ("y", "h2", "e", "t")]
    path = tmp_path / "graph.onnx"
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", inputs, outputs, constants)), path)
    assert weight_bytes(path) == (3 * 5 + 11 * 5) * 4


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="VmHWM is Linux's")
def test_a_child_reports_its_own_peak_memory(tmp_path):
    from harness import run_child

    script = tmp_path / "child.py"
    script.write_text(
        f"import sys, json; sys.path.insert(0, {str(BENCHMARKS)!r})\n"
        "from harness import peak_rss_bytes\n"
        "before = peak_rss_bytes(); block = bytearray(int(sys.argv[1])); del block\n"
        "print('noise'); print(json.dumps({'grown': peak_rss_bytes() - before}))\n"
    )
    size = 96 * 2**20
    assert size * 0.9 < run_child(str(script), str(size), timeout_s=60)["grown"] < size * 1.5


def test_a_child_that_dies_or_hangs_says_why(tmp_path):
    from harness import run_child

    script = tmp_path / "child.py"
    script.write_text("raise MemoryError('too long')")
    assert run_child(str(script), timeout_s=60) == {"failed": "exit 1: MemoryError: too long"}
    script.write_text("import time; time.sleep(60)")
    assert run_child(str(script), timeout_s=0.5) == {"failed": "longer than 0 s"}


def test_growth_speed_up_and_skips():
    from linear_cost import forecast, growth, reason_to_skip, speed_ups

    def row(length, ours, peers, peak):
        peer = {"seconds": peers, "peak_bytes": peak} if peers else {"failed": "no"}
        return {"length": length, "our": {"seconds": ours, "peak_bytes": 10}, "peer": peer}

    rows = [row(1024, 2.0, 3.0, 100), row(2048, 4.0, 9.0, 130), row(4096, 8.2, None, None)]
    assert growth(rows, "our") == {"2048": 2.0, "4096": pytest.approx(2.05)}
    assert growth(rows, "peer") == {"2048": 3.0}
    assert speed_ups(rows, "seconds", "length") == {"1024": 1.5, "2048": 2.25}
    assert forecast(rows[:2], "peer") == 130 + 4 * 30
    assert reason_to_skip(rows[:2], "peer", 4096) is None
    assert reason_to_skip(rows, "peer", 8192) == "the shorter length failed"
    vast = [row(1024, 1.0, 1.0, 2**40), row(2048, 1.0, 1.0, 2**41)]
    assert "GiB of memory" in reason_to_skip(vast, "peer", 4096)
    assert "tables end" in reason_to_skip(rows[:2], "peer", 65536)


def test_summary_compares_the_faster_way_of_each_side():
    from peer_decode import summarise

    seconds = {"peer graph": 0.02, "peer runtime": 0.025, "our graph": 0.012, "our runtime": 0.0125, "bandwidth": 0.5}
    row = summarise(2048, seconds, read_bytes=4 * 10**9)
    assert (row["peer_best"], row["our_best"], row["bandwidth_gb_s"]) == ("graph", "graph", 8.0)
    assert row["ratio"] == pytest.approx(0.02 / 0.012)
    assert row["our_runtime_tokens_s"] == pytest.approx(80.0)
