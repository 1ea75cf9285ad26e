from __future__ import annotations

import json
import re

import pytest

from linmu.commands.tables import diagnosis_view, size
from linmu.errors import MissingComponentError
from linmu.system.components import COMPONENTS, EITHER, TARGETS, require
from linmu.tools.doctor import Diagnosis, Finding, diagnose
from tests.paths import ROOT


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


def test_every_extra_is_known_with_all_that_it_installs():
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    by_name = {component.distribution: component for component in COMPONENTS}
    for extra in set(extras) - {"all", "dev", "docs"}:  # the last two are for those who change linmu
        assert extra in TARGETS
        for requirement in extras[extra]:
            name = re.match(r"[\w.-]+", requirement)[0].replace("cuda-python", "cuda-bindings")  # what it installs
            if name != "linmu":
                assert extra in by_name[name].needed_by, (extra, name)


def finding(name, ok, *needed_by):
    return Finding(name, "1" if ok else None, None, needed_by, "pip install it")


def test_only_the_base_decides():
    broken = Finding("onnxruntime", "1.31", "libfoo.so is missing", ("base",), "pip install it")
    assert not Diagnosis("3", "m", (finding("numpy", True, "base"), broken)).ok
    fine = Diagnosis("3", "m", (finding("numpy", True, "base"), finding("torch", False, "convert", "export")))
    assert fine.ok and fine.ready()["base"] and not fine.ready()["convert"]
    diagnosis_view(fine)


@pytest.mark.parametrize(
    ("first", "second", "bindings", "gpu", "ready"),
    [(1, 0, 1, 1, True), (0, 1, 1, 1, True), (0, 0, 1, 1, False), (1, 1, 0, 1, False), (1, 0, 1, 0, False)],
)
def test_jetson_needs_one_of_two_tensorrts_and_all_else(first, second, bindings, gpu, ready):
    found = (
        finding("tensorrt", first, "jetson"),
        finding("tensorrt-rtx-cu12", second, "jetson", "jetson-export"),
        finding("cuda-bindings", bindings, "jetson"),
        finding("NVIDIA GPU", gpu, "jetson"),
    )
    assert Diagnosis("3", "m", found).ready()["jetson"] is ready
    assert Diagnosis("3", "m", found).ready()["jetson-export"] is bool(second)


def test_the_either_table_names_components():
    names = {component.distribution for component in COMPONENTS}
    for target, either in EITHER.items():
        assert target in TARGETS and set(either) <= names


def test_a_gpu_is_named_or_said_to_be_missing():
    gpu = next(finding for finding in diagnose().findings if finding.name == "NVIDIA GPU")
    assert gpu.ok or (gpu.problem and "needed for linmu doctor" in gpu.problem and "--runtime nvidia" in gpu.install)


def test_require_names_the_extra():
    require("numpy", needed_for="anything")
    with pytest.raises(MissingComponentError, match=r"nothing_of_this_name .* x .*linmu\[convert\]") as caught:
        require("nothing_of_this_name", needed_for="x", extra="convert")
    assert caught.value.exit_code == 3


def test_sizes():
    assert [size(n) for n in (0, 1023, 1024, 49 * 2**20, 3 * 2**40)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "49.0 MiB",
        "3.0 TiB",
    ]
