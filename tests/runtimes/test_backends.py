"""The table of backends: what its rows name is there, and a row is all that verification asks of a backend."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from linmu.errors import BundleError
from linmu.formats.bundle import open_bundle, write_manifest
from linmu.runtimes.backends import BACKENDS, Backend, named, open_runner
from linmu.tools.verify import verify
from linmu.verification.float_inputs import golden_runner
from linmu.verification.golden import read_golden
from tests.exports import export_bundle
from tests.folders import student_folder

SHOWN = ("graph_files", "kernels", "hidden", "float_inputs", "exposer", "stock")
NOTHING_SHOWN = dict.fromkeys(SHOWN)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """(student, bundle) of a backend named "other"."""
    root = tmp_path_factory.mktemp("other")
    student, folder = student_folder("llama", root), root / "bundle"
    manifest = export_bundle(student, folder, preset="none")
    write_manifest(folder, replace(manifest, backends=("other",)))
    return student, folder


@pytest.fixture
def row(monkeypatch):
    """Adds the row of a backend "other", which shows what `shown` says."""

    def add(**shown: str | None) -> None:
        entry = replace(BACKENDS["onnxruntime"], module="tests.runtimes.other_backend", opener="open_other", **shown)
        monkeypatch.setitem(BACKENDS, "other", entry)

    return add


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_function_that_a_row_names_is_there(backend):
    entry = BACKENDS[backend]
    if entry.missing and backend != "tensorrt":
        pytest.skip(f"{entry.missing} not installed")
    assert set(SHOWN) <= {field.name for field in fields(Backend)}
    places = [f"{entry.module}:{name}" for name in (entry.opener, entry.probe) if name is not None]
    places += [place for name in SHOWN if (place := getattr(entry, name)) is not None]
    assert all(callable(named(place)) for place in places)
    assert named(None) is None


def test_a_new_backend_is_one_row(place, row):
    student, folder = place
    row()
    report = verify(folder, student=student, steps=5)
    assert report.ok and report.backends == ("other",), report.to_text()
    names = {(check.level, check.name) for check in report.checks if check.backend == "other"}
    assert {("contract", "step.onnx"), ("graph", "step.onnx"), ("rollout", "step.onnx, 5 steps")} <= names
    assert {("graph", "prefill"), ("rollout", "5 steps"), ("student", "greedy, 6 tokens")} <= names
    assert ("bisect", "step form -> graph files [other]") in names
    assert any(check.name == "prefill, every position" for check in report.checks)


def test_what_a_row_does_not_name_is_not_asked_for(place, row):
    student, folder = place
    row(**NOTHING_SHOWN)
    report = verify(folder, student=student, steps=5)
    assert report.ok, report.to_text()
    names = {(check.level, check.name) for check in report.checks}
    assert {("graph", "prefill"), ("rollout", "5 steps"), ("student", "greedy, 6 tokens")} <= names
    assert not [name for _, name in names if ".onnx" in name or "graph files" in name or "prefill, every" in name]
    (every,) = (check for check in report.checks if check.name == "every position of the prompt")
    assert every.note == "this backend shows none"


def test_golden_vectors_of_float_inputs_need_a_backend_that_can_leave_rounding_out(place, row):
    bundle = open_bundle(place[1])
    golden = replace(read_golden(bundle), metadata={"inputs": "float"})
    row(float_inputs=None)
    with open_runner(bundle, "other") as runner:
        with pytest.raises(BundleError, match="golden vectors on backend other.*--backend onnxruntime"):
            with golden_runner(bundle, golden, runner):
                pass
