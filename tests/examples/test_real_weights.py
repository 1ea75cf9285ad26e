"""Bookkeeping of examples/real_weights.py: products are kept, or made anew after a new one; a failure stops it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.paths import ROOT

EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def demo():
    """The module, importable as when it is run as a script."""
    sys.path.insert(0, str(EXAMPLES))
    import real_weights as demo

    yield demo
    sys.path.remove(str(EXAMPLES))


def writer(folder: Path) -> tuple[str, ...]:
    """A command that makes `folder/done` of 3 bytes."""
    code = "import sys, pathlib; p = pathlib.Path(sys.argv[1]); p.mkdir(); (p / 'done').write_text('abc')"
    return (sys.executable, "-c", code, str(folder))


def test_kept_and_made_anew(demo, tmp_path):
    steps = tuple(demo.Step(name, writer(tmp_path / name), tmp_path / name, "done") for name in "abc")
    assert all(row.seconds is not None for row in demo.make(steps))
    assert all(row.seconds is None for row in demo.make(steps))
    (tmp_path / "b" / "done").unlink()
    assert [row.seconds is None for row in demo.make(steps)] == [True, False, False]
    assert demo.folder_bytes(tmp_path) == 9


def test_a_failing_command_ends_the_demo_with_its_code(demo):
    with pytest.raises(SystemExit) as stopped:
        demo.call((sys.executable, "-c", "import sys; sys.exit(3)"))
    assert stopped.value.code == 3


def test_photograph_is_a_picture(demo, tmp_path):
    pytest.importorskip("skimage")
    from PIL import Image

    with Image.open(demo.photograph(tmp_path)) as picture:
        assert picture.size == (512, 512) and picture.mode == "RGB"


def test_summary_has_a_line_a_row(demo):
    rows = [demo.Row("convert", 12.34, "7 MB"), demo.Row("ask", None, "'hi'")]
    assert demo.summary(rows).splitlines() == ["convert   12.3 s  7 MB", "ask         kept  'hi'"]
