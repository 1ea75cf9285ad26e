"""A quantized phone bundle: golden vectors, the stock runner, every rounded input followed, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest

pytest.importorskip("executorch")

from linmu.calibration.collect import calibrate  # noqa: E402
from linmu.cli import main  # noqa: E402
from linmu.export.targets import write_bundle  # noqa: E402
from linmu.formats.bundle import open_bundle, write_manifest  # noqa: E402
from linmu.tools.verify import verify  # noqa: E402
from tests.export.phone.students import one_layer, unequal_steps  # noqa: E402
from tests.quantize.test_form import FAST  # noqa: E402

pytestmark = pytest.mark.slow  # lowering for phones takes a minute


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """(student folder, calibration record, bundle folder)."""
    root = tmp_path_factory.mktemp("quantized")
    with pytest.MonkeyPatch.context() as patch:
        student = one_layer("llama", root, patch)
    record, bundle = root / "calib.safetensors", root / "bundle"
    calibrate(student, record, allow_random=True, **FAST)
    write_bundle(student, bundle, target="ios", calibration=record)
    return student, record, bundle


def test_the_manifest(place):
    manifest = open_bundle(place[2]).manifest
    found = manifest.precision
    assert (found.weights, found.floats, found.group_size) == ("8da4w", "fp32", 32)
    assert found.matrix_inputs == ("int8_rows",) and manifest.target == "ios"
    assert all(method["share"] == 1.0 for method in manifest.program["methods"].values())


def test_every_input_is_followed_and_the_stock_runner_agrees(place):
    student, record, bundle = place
    report = verify(bundle, student=student, calibration=record, steps=40)
    assert report.ok, report.checks
    names = [check.name for check in report.checks]
    assert "session: prompt and 40 steps" in names and "session: the same bits when nothing is shown" in names
    assert any(check.level == "stock" for check in report.checks)
    followed = next(check for check in report.checks if check.name == "session: prompt and 40 steps")
    assert "codes compared" in followed.note


def test_a_step_gives_the_bits_that_the_stock_runner_gets(place):
    """Otherwise a code that falls on the other side of a border lets two texts of one program part."""
    assert unequal_steps(place[2], 50) == []


def test_other_integers_do_not_pass(place, tmp_path):
    """A reference of another preset: what it shows is its own, and the program gives other bits."""
    student, record, bundle = place
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    manifest = open_bundle(copy).manifest
    write_manifest(copy, replace(manifest, precision=replace(manifest.precision, weights="8da8w")))
    report = verify(copy, student=student, calibration=record, steps=2)
    failed = {check.name for check in report.checks if not check.ok}
    assert "session: the same bits when nothing is shown" in failed


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--quant", "8da4w"], ["--quant 8da4w", "linmu calibrate"]),
        (["--quant", "int4"], ["preset of target 'android'", "none, fp32, 8da4w, 8da8w"]),
        (["--quant", "fp16"], ["preset of target 'android'", "none, fp32, 8da4w, 8da8w"]),
        (["--quant", "none", "--calib", "RECORD"], ["--calib with a float preset"]),
    ],
)
def test_refused_presets(place, tmp_path, capsys, options, said):
    student, record, _ = place
    options = [str(record) if option == "RECORD" else option for option in options]
    capsys.readouterr()
    assert main(["export", str(student), "--target", "android", *options, "-o", str(tmp_path / "out")]) == 2
    line = capsys.readouterr().err.strip()
    assert len(line.splitlines()) == 1 and all(words in line for words in said), line
    assert not (tmp_path / "out").exists()


def test_verify_with_the_student_asks_for_the_record(place, capsys):
    student, _, bundle = place
    capsys.readouterr()
    assert main(["verify", str(bundle), "--student", str(student), "--json"]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "no calibration record" in said and "--calib" in said
    assert json.loads((bundle / "manifest.json").read_text("utf-8"))["target"] == "ios"


def test_threads_are_set(place):
    from executorch.extension.pybindings.portable_lib import _threadpool_get_thread_count

    from linmu.runtimes.session import load

    for threads in (1, 2):
        with load(place[2], threads=threads) as session:
            assert _threadpool_get_thread_count() == threads
            assert session.generate("a", max_new_tokens=2) is not None
