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
from tests.folders import ROOT, student_folder

COUNTS = {"bundle": 120, "state": 60, "golden": 15, "record": 60}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    root = tmp_path_factory.mktemp("fuzz")
    write_bundle(student_folder("llama", root), root / "bundle")
    write_record(root / "calib.safetensors", a_record())
    return root / "bundle"


@pytest.mark.parametrize("part", COUNTS)
def test_every_input_is_refused_or_works(bundle, part):
    command = [sys.executable, "benchmarks/fuzz_bundles.py", str(bundle), "--part", part, "--seed", "7",
               "--count", str(COUNTS[part]), "--calib", str(bundle.parent / "calib.safetensors")]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout.splitlines()[-1])["counts"][part]
    assert sum(counts.values()) == COUNTS[part] and counts["refused"] > COUNTS[part] // 3
