from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from linmu.cli import main
from linmu.errors import InputError, MissingComponentError
from linmu.tools.bench import bench
from tests.exports import export_bundle
from tests.folders import student_folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    root = tmp_path_factory.mktemp("bench")
    export_bundle(student_folder("smolvlm", root), root / "bundle")
    return root / "bundle"


def test_rows_table_json_and_plot(capsys, bundle, tmp_path):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "bench.png"
    arguments = ["bench", str(bundle), "--contexts", "300,20", "--threads", "1"]
    assert main([*arguments, "--json", "--plot", str(picture)]) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert [row["context"] for row in report["rows"]] == [20, 300] and report["threads"] == 1
    manifest = json.loads((bundle / "manifest.json").read_text())
    for row in report["rows"]:
        assert row["state_bytes"] == manifest["state_bytes"] and row["backend"] == "onnxruntime"
        assert row["prefill_tokens_per_s"] == pytest.approx(row["context"] / row["ttft_ms"] * 1e3)
        assert row["decode_tokens_per_s"] == pytest.approx(1e3 / row["step_ms"])
        assert row["peak_bytes"] > 2**20
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert main(arguments) == 0
    table = capsys.readouterr().out
    assert all(word in table for word in ("TTFT ms", "prefill tok/s", "peak MiB", " 20 ", " 300 "))


def test_peak_memory_belongs_to_a_length_alone(bundle):
    ballast = bytearray(b"x") * 2**28  # this process is large; the measured ones are not
    report = bench(bundle, contexts=[24], threads=1)
    assert 0 < report.rows[0].peak_bytes < len(ballast)


def test_a_jetson_says_its_power_mode_and_load(bundle, tmp_path, monkeypatch):
    """Programs of the names a Jetson has, that print recorded lines."""
    silent = bench(bundle, contexts=[24], threads=1)
    assert silent.device is None and silent.to_json()["device"] is None
    line = "RAM 775/7620MB (lfb 3x4MB) GR3D_FREQ 63%@[611] VDD_IN 4761mW/4777mW VDD_SOC 1428mW/1428mW"
    loop = f"import time\nwhile True:\n    print({line!r}, flush=True)\n    time.sleep(0.05)\n"
    for name, code in (("tegrastats", loop), ("nvpmodel", "print('NV Power Mode: MAXN\\n0')\n")):
        (tmp_path / name).write_text(f"#!{sys.executable}\n{code}")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    report = bench(bundle, contexts=[24], threads=1)
    load = report.device.loads[24]
    assert load.peak_ram_bytes == 775 * 2**20 and load.peak_gpu_percent == 63 and load.samples > 1
    assert load.peak_power_mw == 4761 and load.mean_power_mw == pytest.approx(4761)
    text = report.to_text()
    assert "power mode MAXN" in text and "24 tokens: peak RAM of the device 775 MiB, GPU 63%, power 4.8 W" in text
    json.dumps(report.to_json())


@pytest.mark.parametrize("backend", ["onnxruntime", "torch"])
def test_backends(bundle, backend):
    assert bench(bundle, contexts=[24], backend=backend, threads=1).rows[0].backend == backend


def test_bad_requests(bundle, tmp_path):
    for contexts in ([], [0], [16, -1]):
        with pytest.raises(InputError, match="context lengths"):
            bench(bundle, contexts=contexts)
    for name in ("plot.txt", "none/plot.png"):
        with pytest.raises(InputError):
            bench(bundle, contexts=[16], plot=tmp_path / name)
    with pytest.raises(InputError, match="manifest.json"):
        bench(tmp_path, contexts=[16])
    with pytest.raises(InputError, match="backend"):
        bench(bundle, contexts=[16], backend="abacus")


def test_plot_without_matplotlib_names_the_extra(bundle, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingComponentError, match=r"linmu\[bench\]"):
        bench(bundle, contexts=[16], plot=tmp_path / "plot.png")


def test_a_child_that_fails_is_one_line(bundle, tmp_path):
    request = json.dumps([str(tmp_path / "none"), 16, "auto", None])
    done = subprocess.run([sys.executable, "-m", "linmu.tools.bench"], input=request, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "no bundle at" in done.stderr
