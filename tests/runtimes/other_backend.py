"""A backend that no part of linmu knows: ONNX Runtime by another name (tests/runtimes/test_backends.py)."""

from __future__ import annotations

from linmu.formats.bundle import Bundle
from linmu.runtimes.ort_runner import OrtRunner


class OtherRunner(OrtRunner):
    backend = "other"


def open_other(bundle: Bundle, threads: int | None) -> OtherRunner:
    return OtherRunner(bundle, threads)
