"""Float bundles beside their student: which stage is named, and that a path which raises stops no other one."""

from __future__ import annotations

import pytest

from linmu.proof import lockstep
from linmu.proof.student_player import StudentPlayer
from linmu.tools.verify import verify
from linmu.verification.players import SessionPlayer
from tests.exports import export_bundle
from tests.folders import student_folder

STEPS = 4
WAY = ["student -> step form", "step form -> graph files [onnxruntime]", "step form -> runner [onnxruntime]"]
SESSION = [f"prompt and {STEPS} steps", f"greedy, {STEPS + 1} tokens"]
EVERY = "every position of the prompt"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """(student, bundle)."""
    root = tmp_path_factory.mktemp("llama")
    student = student_folder("llama", root)
    export_bundle(student, root / "bundle")
    return student, root / "bundle"


def against_student(place):
    """The report, and the checks of its student levels by name."""
    report = verify(place[1], student=place[0], backends=["onnxruntime"], steps=STEPS)
    return report, {check.name: check for check in report.checks if check.level in ("student", "bisect")}


def test_checks_stand_in_the_order_of_the_way(place) -> None:
    report, checks = against_student(place)
    assert report.ok and report.culprit is None, report.to_text()
    assert list(checks) == [*WAY, *SESSION, EVERY]
    assert all({"logits", "states"} <= set(checks[name].kinds) for name in (*WAY, *SESSION))
    curves = {(curve.backend, curve.kind) for curve in report.curves if curve.level == "student"}
    paths = ("onnxruntime", "onnxruntime graph files", "onnxruntime runner")
    assert curves == {(path, kind) for path in paths for kind in ("logits", "states")}


def test_a_session_that_raises_fails_alone(place, monkeypatch) -> None:
    class Raising(SessionPlayer):
        def step(self, token: int):
            raise RuntimeError("out of luck")

    monkeypatch.setattr(lockstep, "SessionPlayer", Raising)
    report, checks = against_student(place)
    assert [name for name, check in checks.items() if not check.ok] == SESSION
    assert all("RuntimeError at step 1: out of luck" in checks[name].note for name in SESSION)
    assert report.culprit == "runner [onnxruntime] -> session [onnxruntime]"


def test_a_step_form_that_is_another_function_than_the_student_is_named(place, monkeypatch) -> None:
    class Other(StudentPlayer):
        def step(self, token: int):
            logits = super().step(token)
            return logits + 3e-4 * logits.std()

    monkeypatch.setattr(lockstep, "StudentPlayer", Other)
    report, checks = against_student(place)
    assert report.culprit == "student -> step form"
    assert [name for name, check in checks.items() if not check.ok] == [*WAY, *SESSION]
    assert "first over tolerance at step 1: logits" in checks["student -> step form"].note
