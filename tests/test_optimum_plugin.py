from __future__ import annotations

import subprocess
import sys

import pytest

from tests.paths import ROOT

pytest.importorskip("optimum")


def optimum_cli(*arguments):
    script = "import sys; from optimum.commands.optimum_cli import main; sys.argv[0] = 'optimum-cli'; main()"
    return subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, cwd=ROOT)


def test_optimum_knows_the_command():
    done = optimum_cli("export", "linmu", "--help")
    assert done.returncode == 0, done.stderr
    assert "--target" in done.stdout and "model output" in done.stdout


def test_it_is_linmu_that_runs(tmp_path):
    done = optimum_cli("export", "linmu", str(tmp_path / "none"), str(tmp_path / "bundle"))
    assert done.returncode == 2 and "error: no model folder" in done.stderr


def test_the_namespace_stays_a_namespace():
    assert [path for path in (ROOT / "optimum").rglob("__init__.py")] == []
