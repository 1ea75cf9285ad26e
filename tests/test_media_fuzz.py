from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "fuzz_media.py"


@pytest.mark.skipif(sys.platform != "linux", reason="limits and peaks are read from /proc")
def test_damaged_and_hostile_media_are_read_or_refused_in_one_line():
    """A few hundred of what the script does by the thousand: every seed file whole and in several damaged forms."""
    command = [sys.executable, str(SCRIPT), "--inputs", "600", "--seed", "7"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    found = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 0, found["wrong"]
    assert found["read"] + found["refused"] == 600 and min(found["read"], found["refused"]) > 150
    assert found["peak_mib"] < 512
