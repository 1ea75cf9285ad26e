"""`--quant auto --budget`: bundles on either side of where the state's precision changes, and what is said of it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from linmu.calibration.collect import calibrate
from linmu.calibration.record import digest, read_record
from linmu.cli import main
from linmu.errors import InputError
from linmu.export.targets import write_bundle
from linmu.formats.bundle import open_bundle
from linmu.formats.safetensors_file import read_header
from linmu.tools.verify import verify
from tests.folders import student_folder

FAST = {"samples": 3, "decode_tokens": 3, "long_tokens": 4, "state_tokens": 9, "kept_rows": 40}
PLENTY = 1 << 40
OPTIONS = {"onnx": {}, "jetson": {"compile_check": False}}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("llama")
    student = student_folder("llama", root)
    calibrate(student, root / "calib.safetensors", allow_random=True, **FAST)
    return student, root / "calib.safetensors"


def smallest(place, tmp_path, **options) -> int:
    """The smallest budget, as the error of a smaller one says it."""
    with pytest.raises(InputError, match="too small for the matrices and one state") as caught:
        write_bundle(place[0], tmp_path / "none", preset="auto", calibration=place[1], budget_bytes=7, **options)
    assert not (tmp_path / "none").exists()
    found = re.search(r"at least (\d+) \((\d+) of matrices, (\d+) of an (fp\d+) state\)", str(caught.value))
    assert found is not None and int(found[1]) == int(found[2]) + int(found[3])
    assert found[4] == options.get("state", "fp16")
    return int(found[1])


def worst_octave(record: Path) -> int:
    """How often states had been rounded where a layer's error is largest, from the record's own sums.

    Which octave that is depends on the CPU's sums; of nine tokens the last reads what was rounded eight times.
    """
    curves = [curve for name, curve in read_record(record).float16_states.items() if name.endswith(".recurrent")]
    with np.errstate(invalid="ignore"):
        worst = [1 << int(np.nanargmax(curve[:, 0] / curve[:, 1])) for curve in curves]
    assert len(curves) > 1 and set(worst) <= {1, 2, 4, 8} and all(curve[3, 1] > 0 for curve in curves)
    return max(worst)


@pytest.mark.parametrize("target", OPTIONS)
def test_the_smallest_budget_rounds_the_state_and_verifies(place, tmp_path, target) -> None:
    options = {"target": target, **OPTIONS[target]}
    budget = smallest(place, tmp_path, **options)
    report = write_bundle(
        place[0], tmp_path / "bundle", preset="auto", calibration=place[1], budget_bytes=budget, **options
    )
    manifest = open_bundle(tmp_path / "bundle").manifest
    assert manifest.precision.state == "fp16"
    assert {spec.dtype for spec in manifest.state if spec.name.endswith("recurrent")} == {"float16"}
    rows = [row for row in report.matrices if target == "onnx" or row.name.startswith("layers.")]
    assert sum(row.stored_bytes for row in rows) + manifest.state_bytes == budget
    told = report.to_json()["budget"]
    exact, half = told["outcomes"]
    assert told["state"] == "fp16" and "do not fit beside an fp32 state" in told["reason"]
    assert exact["error"] is None and half["bytes"] == budget
    assert half["state"]["stored_bytes"] == manifest.state_bytes < exact["state"]["stored_bytes"]
    assert half["error"] > half["state"]["error"] > 0
    assert half["state"]["error"] == pytest.approx(sum(x**2 for x in half["state"]["layer_errors"]))
    assert half["state"]["roundings"] == worst_octave(place[1])
    found = verify(tmp_path / "bundle", student=place[0], steps=8)
    assert found.ok, found.to_text()


def test_where_everything_fits_nothing_is_rounded(place, tmp_path, capsys) -> None:
    arguments = [str(place[0]), "--quant", "auto", "--budget", str(PLENTY), "--calib", str(place[1]), "--json"]
    assert main(["export", "-o", str(tmp_path / "bundle"), *arguments]) == 0
    said = capsys.readouterr()
    told = json.loads(said.out)["budget"]
    assert told["state"] == "fp32" and told["outcomes"][0]["error"] == 0
    assert "rounding it would cost more" in told["reason"]
    assert "state fp32: rounding it would cost more" in " ".join(said.err.split())
    assert open_bundle(tmp_path / "bundle").manifest.precision.state == "fp32"
    found = verify(tmp_path / "bundle", student=place[0], steps=4)
    assert found.ok, found.to_text()


def test_a_state_that_was_asked_for_wins(place, tmp_path, capsys) -> None:
    options = {"preset": "auto", "calibration": place[1]}
    report = write_bundle(place[0], tmp_path / "fp16", budget_bytes=PLENTY, state="fp16", **options)
    assert report.manifest.precision.state == "fp16" and report.budget.reason == "--state asked for it"
    least, exact = smallest(place, tmp_path), smallest(place, tmp_path, state="fp32")
    assert least < exact
    report = write_bundle(place[0], tmp_path / "fp32", budget_bytes=exact, state="fp32", **options)
    assert report.manifest.precision.state == "fp32" and len(report.budget.outcomes) == 1
    arguments = [str(place[0]), "--quant", "auto", "--calib", str(place[1]), "-o", str(tmp_path / "none")]
    assert main(["export", *arguments, "--budget", str(exact - 1), "--state", "fp32"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: --budget is too small") and f"expected at least {exact} (" in error
    assert not (tmp_path / "none").exists()


def test_a_record_that_never_looked_at_float16_states_leaves_them_alone(place, tmp_path) -> None:
    old = tmp_path / "old.safetensors"
    tensors = {name: x for name, x in load_file(place[1]).items() if not name.startswith("float16_states/")}
    metadata = read_header(place[1]).metadata
    save_file(tensors, old, {**metadata, "sha256": digest(metadata, tensors)})
    least = smallest((place[0], old), tmp_path, state="fp32")
    with pytest.raises(InputError, match="of an fp32 state.*fix: calibrate again, or --state fp16"):
        write_bundle(place[0], tmp_path / "none", preset="auto", calibration=old, budget_bytes=least - 1)
    report = write_bundle(place[0], tmp_path / "bundle", preset="auto", calibration=old, budget_bytes=least)
    assert report.manifest.precision.state == "fp32"
    assert "does not say what float16 states cost" in report.budget.reason
