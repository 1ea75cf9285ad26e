"""What the level "stock" holds the runners' texts against."""

from __future__ import annotations

import pytest

pytest.importorskip("executorch")

from linmu.processing import Processor  # noqa: E402
from linmu.processing.convert import write_processor  # noqa: E402
from linmu.verification.stock import written  # noqa: E402
from tests.folders import student_folder  # noqa: E402


def test_special_tokens_are_written_out(tmp_path):
    """Stock runners pass them on; our own sessions leave them out."""
    write_processor(student_folder("llava", tmp_path), tmp_path / "files")
    processor = Processor.from_folder(tmp_path / "files")
    ids = [processor.tokenizer.token_to_id(token) for token in ("<image>", "B")]
    assert written(processor, ids) == "<image>B" and processor.decode(ids) == "B"
