"""A few hundred seeded inputs of benchmarks/fuzz_bundles.py: refused or working, and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from linmu.calibration.record import write_record
from linmu.export.onnx_bundle import write_bundle
from tests.calibration.test_record import a_record
from tests.folders import student_folder
from tests.paths import ROOT

COUNTS = {"bundle": 120, "state": 50, "golden": 10, "record": 50}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    root = tmp_path_factory.mktemp("fuzz")
    write_bundle(student_folder("llama", root), root / "bundle")
    write_record(root / "calib.safetensors", a_record())
    return root / "bundle"


def test_every_input_is_refused_or_works(bundle):
    chosen = [text for part, count in COUNTS.items() for text in ("--part", f"{part}:{count}")]
    command = [
        sys.executable,
        "benchmarks/fuzz_bundles.py",
        str(bundle),
        *chosen,
        "--seed",
        "7",
        "--calib",
        str(bundle.parent / "calib.safetensors"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout.splitlines()[-1])["counts"]
    assert {part: sum(found.values()) for part, found in counts.items()} == COUNTS
    assert all(found["refused"] > COUNTS[part] // 3 for part, found in counts.items() if part != "golden")
