"""What `pip install` brings to a device: the source archive, the wheel, and the wheel at work outside the checkout."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import Distribution, distribution, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.folders import student_folder
from tests.paths import ROOT

pytest.importorskip("setuptools", minversion="77", reason="the build backend is not installed")
pytestmark = pytest.mark.slow

LEFT_BEHIND = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "out", "build", "dist", "site")
# Everything that stands beside the package in a checkout, and what no device has a use for.
NOT_SHIPPED = re.compile(r"^(tests|examples|benchmarks|docs)/|demo_teacher|questions/|stamps")


def run(*command: str | Path, **options) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def archives(tmp_path_factory) -> tuple[Path, Path]:
    """The sdist of a copy of the checkout, and the wheel that is built from that sdist alone."""
    place = tmp_path_factory.mktemp("dist")
    source = place / "checkout"
    shutil.copytree(ROOT, source, ignore=LEFT_BEHIND)
    build = "import sys, setuptools.build_meta as backend; print(backend.build_sdist(sys.argv[1]))"
    run(sys.executable, "-c", build, place, cwd=source)
    (sdist,) = place.glob("linmu-*.tar.gz")
    offline = ("--no-deps", "--no-index", "--no-build-isolation")
    run(sys.executable, "-m", "pip", "wheel", *offline, "-w", place, sdist)
    (wheel,) = place.glob("linmu-*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def shipped(archives) -> set[str]:
    """Names of all files in the wheel."""
    with zipfile.ZipFile(archives[1]) as wheel:
        return set(wheel.namelist())


def test_wheel_holds_the_whole_package(shipped):
    """Every module and every data file of the checkout's package, and nothing that is not there."""
    suffixes = {".py", ".yaml", ".typed", ".j2", ".jinja", ".html"}
    package = {
        path.relative_to(ROOT).as_posix()
        for folder in ("linmu", "optimum")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in suffixes or "linmu/demo/student" in path.as_posix()
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {"linmu/demo/student/model.safetensors", "linmu/distill/recipes/small.yaml"} <= package
    assert package - shipped == set()
    metadata = {name for name in shipped if ".dist-info/" in name}
    assert shipped - metadata == package
    assert any(name.endswith("/licenses/LICENSE") for name in metadata)


def test_nothing_of_the_checkout_beside_the_package_is_shipped(archives, shipped):
    assert [name for name in shipped if NOT_SHIPPED.search(name)] == []
    with tarfile.open(archives[0]) as sdist:
        inside = [member.name.partition("/")[2] for member in sdist.getmembers() if member.isfile()]
    assert {"pyproject.toml", "README.md", "LICENSE", "linmu/__init__.py"} <= set(inside)
    assert [name for name in inside if NOT_SHIPPED.search(name) and not name.startswith("tests/")] == []


def base_distributions() -> dict[str, Distribution]:
    """What linmu requires without any extra, and what that requires in its turn."""
    found: dict[str, Distribution] = {}
    waiting = ["linmu"]
    while waiting:
        for line in requires(waiting.pop()) or []:
            need = Requirement(line)
            if (need.marker is None or need.marker.evaluate({"extra": ""})) and need.name not in found:
                found[need.name] = distribution(need.name)
                waiting.append(need.name)
    return found


@pytest.fixture(scope="module")
def device(tmp_path_factory, archives) -> Path:
    """A fresh virtual environment with the wheel and the base requirements, links to the copies installed here."""
    place = tmp_path_factory.mktemp("device")
    run(sys.executable, "-m", "venv", "--without-pip", place / "env")
    python = place / "env" / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", archives[1])
    (packages,) = (place / "env" / "lib").glob("python*/site-packages")
    for base in base_distributions().values():
        for top in {file.parts[0] for file in base.files or () if file.parts[0] not in ("..", "__pycache__")}:
            if not (packages / top).exists():
                (packages / top).symlink_to(Path(str(base.locate_file(top))).resolve())
    return place / "env"


def test_installed_wheel_answers_outside_the_checkout(tmp_path, device):
    """A tiny bundle made here gives there, where no torch is, the tokens it gives here."""
    (package,) = (device / "lib").glob("python*/site-packages/linmu")
    bundle = tmp_path / "bundle"
    run(sys.executable, "-m", "linmu", "export", student_folder("llama", tmp_path), "-o", bundle, cwd=ROOT)
    question = ("run", bundle, "--prompt", "the cat sat on the mat", "--max-new-tokens", "8")
    here = json.loads(run(sys.executable, "-m", "linmu", *question, "--json", cwd=ROOT))

    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    outside = {"cwd": tmp_path, "env": environment}
    python, linmu = device / "bin" / "python", device / "bin" / "linmu"
    where = run(python, "-c", "import linmu; print(linmu.__file__)", **outside)
    assert Path(where.strip()) == package / "__init__.py"
    absent = "import importlib.util as u; print([n for n in ('torch', 'transformers', 'onnx') if u.find_spec(n)])"
    assert run(python, "-c", absent, **outside) == "[]\n"
    there = json.loads(run(linmu, *question, "--json", **outside))
    assert len(there["token_ids"]) > 0 and there["token_ids"] == here["token_ids"]
    assert run(linmu, *question, **outside).strip() == here["text"].strip()

    student = json.loads(run(linmu, "inspect", package / "demo" / "student", "--json", **outside))
    assert student["kind"] == "student"
    done = subprocess.run([linmu, "export", "-o", tmp_path / "x"], capture_output=True, text=True, **outside)
    assert done.returncode == 3 and "linmu[" in done.stderr and done.stderr.count("\n") == 1
