from __future__ import annotations

import json

import pytest

from linmu.doctor import COMPONENTS, TARGETS, Diagnosis, Finding, diagnose, require
from linmu.errors import MissingComponentError
from linmu.tables import diagnosis_view, size


def test_base_install_here_is_whole():
    found = diagnose()
    assert found.ok and found.ready()["base"]
    by_name = {finding.name: finding for finding in found.findings}
    assert by_name["numpy"].version == __import__("numpy").__version__
    assert by_name["onnxruntime kernels LinearAttention and CausalConvWithState"].ok
    json.dumps(found.to_json(), allow_nan=False)


def test_table_names_known_targets_and_a_way_to_install():
    for component in COMPONENTS:
        assert set(component.needed_by) <= set(TARGETS) and component.install
        assert "base" in component.needed_by or component.extra or component.fix


def finding(name, ok, *needed_by):
    return Finding(name, "1" if ok else None, None, needed_by, "pip install it")


def test_only_the_base_decides():
    broken = Finding("onnxruntime", "1.31", "libfoo.so is missing", ("base",), "pip install it")
    assert not Diagnosis("3", "m", (finding("numpy", True, "base"), broken)).ok
    fine = Diagnosis("3", "m", (finding("numpy", True, "base"), finding("torch", False, "convert", "export")))
    assert fine.ok and fine.ready()["base"] and not fine.ready()["convert"]
    diagnosis_view(fine)


@pytest.mark.parametrize(("first", "second", "ready"), [(1, 0, True), (0, 1, True), (0, 0, False)])
def test_jetson_needs_one_of_two_tensorrts(first, second, ready):
    both = (finding("tensorrt", first, "jetson"), finding("tensorrt_rtx", second, "jetson"))
    assert Diagnosis("3", "m", both).ready()["jetson"] is ready


def test_require_names_the_extra():
    require("numpy", needed_for="anything")
    with pytest.raises(MissingComponentError, match=r"nothing_of_this_name .* x .*linmu\[convert\]") as caught:
        require("nothing_of_this_name", needed_for="x", extra="convert")
    assert caught.value.exit_code == 3


def test_sizes():
    assert [size(n) for n in (0, 1023, 1024, 49 * 2**20, 3 * 2**40)] == [
        "0 B", "1023 B", "1.0 KiB", "49.0 MiB", "3.0 TiB",
    ]  # fmt: skip
